"""One worker process, from its settings to its last micro-batch."""

from __future__ import annotations

import gc
import os
import signal
import sys
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import structlog

from producer.errors import ServerError
from producer.keys import Keys
from workers.artifacts import Artifacts, check_calibration, open_policy, open_predictor, open_slicer
from workers.engine.keeper import Keeper
from workers.engine.loop import Loop
from workers.engine.queue import LeasedQueue
from workers.errors import NotReady
from workers.pool.child import tell_ready
from workers.pool.served import served_by
from workers.settings import WorkerSettings, worker_name
from workers.side import SideThread

if TYPE_CHECKING:
    from amn.predictor import Predictor

_LOG = structlog.get_logger("amn.worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A worker, put together: its loop, with the model warmed up, and what runs beside it."""

    loop: Loop
    sides: tuple[SideThread, ...] = ()


def run_worker(settings: WorkerSettings, artifacts: Artifacts) -> None:
    """Loads, checks, warms up, then works until SIGTERM or SIGINT.

    The first signal finishes what is at hand and hands back what is leased beyond it; a second
    one leaves at once, and the lease does the rest.

    Raises:
        NotReady: Model, bank, policy or calibration do not hold, or the server cannot be used.
    """
    if settings.background:
        _yield_to_others()
    parts = build(settings, artifacts)
    loop, queue = parts.loop, parts.loop.queue
    served = served_by(artifacts.model, artifacts.bank if settings.kind == "amn" else None)
    sides = (Keeper(loop, served | {"artifacts": artifacts.origin}), *parts.sides)
    _stop_on_signals(loop)
    try:
        queue.ensure_group()
    except ServerError as error:
        # A person who starts a worker wants to know; a pool's worker waits for a server that restarts.
        if not (settings.parent_pid and error.retryable):
            raise NotReady(str(error)) from error
    # All that was loaded stays for good: the collector need not walk it, a pause of many milliseconds.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000)  # a micro-batch makes thousands of objects and no cycles
    for side in sides:
        side.start()
    _LOG.info("worker_ready", worker=queue.name, kind=settings.kind, model=str(artifacts.model))
    tell_ready()
    print("ready", flush=True)
    try:
        loop.run()
    finally:
        for side in sides:
            side.stop()
        try:
            queue.release()
        except ServerError as error:
            _LOG.warning("release_failed", worker=queue.name, error=str(error))
        queue.close()
        _LOG.info("worker_stopped", worker=queue.name, finished=loop.finished)


def build(settings: WorkerSettings, artifacts: Artifacts) -> Parts:
    """A worker of `settings.kind`, not started.

    Raises:
        NotReady: Model, bank, policy or calibration do not hold, or do not belong together.
    """
    # Heavy imports belong to the process that serves, not to whoever imports this module.
    import torch
    from threadpoolctl import threadpool_limits

    from amn.errors import AmnError

    torch.set_num_threads(settings.threads)
    torch.set_num_interop_threads(1)
    threadpool_limits(settings.threads)  # NumPy's library has threads of its own
    kinds = {"amn": _amn, "fallback": _fallback, "shadow": _shadow}
    try:
        return kinds[settings.kind](settings, artifacts, open_predictor(settings, artifacts))
    except AmnError as error:
        raise NotReady(str(error)) from error


def _amn(settings: WorkerSettings, artifacts: Artifacts, predictor: Predictor) -> Parts:
    from amn.bank.bank import CellBank
    from amn.gate.escalation import Allowance
    from workers.gate.budget import GateThread
    from workers.handlers.amn import AmnHandler, Gate
    from workers.handlers.decisions import DecisionLog
    from workers.handlers.recheck import RecheckThread
    from workers.shadow.sampler import Sampler, SamplerThread

    policy, calibration = open_policy(artifacts)
    if calibration is not None:
        check_calibration(calibration, artifacts, "AMN", calibration.amn, predictor)
    log = None
    if artifacts.decision_log is not None:
        log = DecisionLog(artifacts.decision_log, policy, settings.sample_rate, settings.sample_salt)
    allowance = Allowance()
    gate = Gate(policy=policy, calibration=calibration, allowance=allowance, log=log)
    sampler = Sampler(settings.sample_rate, settings.sample_salt)
    sides: list[SideThread] = [
        GateThread(settings, policy, allowance),
        SamplerThread(settings, sampler),
    ]
    if settings.recheck_one_in and isinstance(predictor.bank, CellBank):
        sides.append(RecheckThread(settings, predictor.bank))
    queue = LeasedQueue(settings, Keys(settings.producer.queue).requests, worker_name("amn"))
    return Parts(loop=Loop(queue, AmnHandler(predictor, gate, settings, sampler)), sides=tuple(sides))


def _fallback(settings: WorkerSettings, artifacts: Artifacts, predictor: Predictor) -> Parts:
    from amn.policy import ACCURACY, BLEND
    from workers.gate.tiers import Tally, TierThread
    from workers.handlers.fallback import FallbackHandler, Tier

    policy, calibration = open_policy(artifacts)
    accuracy, keys, tally = artifacts.tier == ACCURACY, Keys(settings.producer.queue), Tally()
    if calibration is not None and accuracy and policy.answer.rule == BLEND:
        check_calibration(calibration, artifacts, "fallback", calibration.fallback, predictor)
    side = TierThread(settings, artifacts.tier, tally)
    tier = Tier(
        name=artifacts.tier,
        policy=policy,
        calibration=calibration,
        next_is_up=lambda: side.next_is_up,
        tally=tally,
    )
    stream = keys.fallback if accuracy else keys.secondary
    queue = LeasedQueue(settings, stream, worker_name("fallback"))
    return Parts(loop=Loop(queue, FallbackHandler(predictor, tier)), sides=(side,))


def _shadow(settings: WorkerSettings, artifacts: Artifacts, predictor: Predictor) -> Parts:
    from workers.shadow.handler import ShadowHandler
    from workers.shadow.queue import ShadowQueue
    from workers.shadow.settings import ShadowSettings
    from workers.shadow.turns import ShadowTurns

    shadow = ShadowSettings()
    handler = ShadowHandler(shadow, predictor, open_slicer(settings, artifacts))
    queue = ShadowQueue(settings, worker_name("shadow"), shadow)
    return Parts(loop=Loop(queue, handler, handler.assemble), sides=(ShadowTurns(settings, shadow),))


def _yield_to_others() -> None:
    """Linux: a waking process takes the core from an idle-class one at once, where a merely nicer
    one keeps it for milliseconds. Elsewhere: nicer."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):
        os.nice(10)


def _stop_on_signals(loop: Loop) -> None:
    def on_signal(number: int, _: FrameType | None) -> None:
        if loop.stopping:
            sys.stderr.flush()
            os._exit(128 + number)
        loop.stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
