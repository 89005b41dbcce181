"""One worker process, from its settings to its last batch."""

from __future__ import annotations

import gc
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import structlog

from producer.errors import ServerError
from producer.keys import Keys
from workers.errors import NotReady
from workers.keeper import Keeper
from workers.loop import Loop
from workers.queue import LeasedQueue
from workers.served import served_by
from workers.settings import WorkerSettings, worker_name

if TYPE_CHECKING:
    from amn.predictor import Predictor

_LOG = structlog.get_logger("amn.worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifacts:
    """What a worker serves.

    Attributes:
        model: Checkpoint folder.
        bank: Reference bank folder; only the AMN worker reads it.
        policy: Name of the escalation policy.
    """

    model: Path
    bank: Path
    policy: str = "budgeted"


def run_worker(settings: WorkerSettings, artifacts: Artifacts) -> None:
    """Loads, checks, warms up, then works until SIGTERM or SIGINT.

    The first signal finishes the batch at hand and hands back what is leased beyond it; a second
    one leaves at once, and the lease does the rest.

    Raises:
        NotReady: Model, bank or policy do not hold, or the server cannot be used.
    """
    if settings.background:
        _yield_to_others()
    loop = build_loop(settings, artifacts)
    queue = loop.queue
    keeper = Keeper(loop, served_by(artifacts.model, artifacts.bank if settings.kind == "amn" else None))
    _stop_on_signals(loop)
    try:
        queue.ensure_group()
    except ServerError as error:
        # Who starts a worker by hand wants to know; a pool's worker waits for a server that restarts.
        if not (settings.parent_pid and error.retryable):
            raise NotReady(str(error)) from error
    # What was loaded stays for good: the collector need not walk it, a pause of many milliseconds.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000)  # a batch makes thousands of objects and no cycles
    keeper.start()
    _LOG.info("worker_ready", worker=queue.name, kind=settings.kind, model=str(artifacts.model))
    print("ready", flush=True)  # what the pool waits for
    try:
        loop.run()
    finally:
        keeper.stop()
        _hand_back(queue)
        _LOG.info("worker_stopped", worker=queue.name, finished=loop.finished)


def build_loop(settings: WorkerSettings, artifacts: Artifacts) -> Loop:
    """The loop of `settings.kind`, its model loaded, checked and warmed up.

    Raises:
        NotReady: Model, bank or policy do not hold.
    """
    # Heavy imports belong to the process that serves, not to whoever imports this module.
    import torch
    from threadpoolctl import threadpool_limits

    from amn.errors import AmnError
    from amn.escalation import preset
    from workers.amn_worker import AmnHandler
    from workers.fallback_worker import FallbackHandler
    from workers.shadow_queue import ShadowQueue
    from workers.shadow_worker import ShadowHandler

    torch.set_num_threads(settings.threads)
    torch.set_num_interop_threads(1)
    threadpool_limits(settings.threads)  # NumPy's library has threads of its own
    keys, name = Keys(settings.producer.queue), worker_name(settings.kind)
    try:
        predictor = open_predictor(settings, artifacts)
        if settings.kind == "amn":
            handler = AmnHandler(predictor, preset(artifacts.policy), settings)
            return Loop(LeasedQueue(settings, keys.requests, name), handler)
    except AmnError as error:
        raise NotReady(str(error)) from error
    if settings.kind == "fallback":
        return Loop(LeasedQueue(settings, keys.fallback, name), FallbackHandler(predictor))
    shadow = ShadowHandler(fallback=predictor)
    return Loop(ShadowQueue(settings, name), shadow, shadow.assemble)


def open_predictor(settings: WorkerSettings, artifacts: Artifacts) -> Predictor:
    """The model, ready for its first batch.

    Raises:
        NotReady: It was trained on vectors of another encoder.
        AmnError: It does not hold.
    """
    from amn.predictor import Predictor

    bank = artifacts.bank if settings.kind == "amn" else None
    predictor = Predictor.open(artifacts.model, bank)
    trained_on = predictor.checkpoint.manifest.encoder_id
    if trained_on != settings.encoder:
        raise NotReady(
            f"model {predictor.model_id} was trained on encoder {trained_on!r}, this worker is to serve "
            f"{settings.encoder!r}; name the right model with --model"
        )
    predictor.warm_up(settings.queue.batch_max)
    return predictor


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


def _hand_back(queue: LeasedQueue) -> None:
    try:
        queue.release()
    except ServerError as error:
        _LOG.warning("release_failed", worker=queue.name, error=str(error))
    queue.close()
