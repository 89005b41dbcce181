"""One worker process, from its settings to its last micro-batch."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType

import structlog

from producer import __version__
from producer.errors import ServerError
from workers.background import yield_to_others
from workers.engine.keeper import Keeper
from workers.engine.loop import Loop
from workers.errors import NotReady
from workers.kinds import build
from workers.pool.served import served_by
from workers.pulse import Pulse
from workers.settings import Artifacts, WorkerSettings

_LOG = structlog.get_logger("amn.worker")


def run_worker(settings: WorkerSettings, artifacts: Artifacts) -> None:
    """Loads, checks, warms up, then works until SIGTERM or SIGINT.

    The first signal finishes what is at hand and hands back what is leased beyond it; a second
    one leaves at once, and the lease does the rest.

    Raises:
        NotReady: Model, bank, policy or calibration do not hold, or the server cannot be used.
    """
    parts = build(settings, artifacts)
    if settings.background:  # not before: on a busy machine it would take minutes to load
        yield_to_others()
    loop, queue = parts.loop, parts.loop.queue
    served = served_by(artifacts.model, artifacts.bank if settings.kind == "amn" else None)
    served |= {**parts.decides, "artifacts": artifacts.origin, "version": __version__}
    pulse = Pulse(ends_itself=False)
    sides = (Keeper(loop, served, pulse.beat), *parts.sides)
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
    pulse.ready()
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


def _stop_on_signals(loop: Loop) -> None:
    def on_signal(number: int, _: FrameType | None) -> None:
        if loop.stopping:
            sys.stderr.flush()
            os._exit(128 + number)
        loop.stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
