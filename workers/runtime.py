"""One worker process, from its settings to its last batch."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import structlog

from producer.errors import ServerError
from producer.keys import Keys
from workers.errors import NotReady
from workers.keeper import Keeper
from workers.loop import Handler, Loop
from workers.queue import LeasedQueue
from workers.settings import WorkerSettings, worker_name

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
    os.nice(settings.niceness)
    handler = build_handler(settings, artifacts)
    queue = open_queue(settings)
    loop = Loop(queue, handler)
    keeper = Keeper(loop)
    _stop_on_signals(loop)
    try:
        queue.ensure_group()
    except ServerError as error:
        raise NotReady(str(error)) from error
    keeper.start()
    _LOG.info("worker_ready", worker=queue.name, kind=settings.kind, model=handler_model(handler))
    print("ready", flush=True)  # what the pool waits for
    try:
        loop.run()
    finally:
        keeper.stop()
        _hand_back(queue)
        _LOG.info("worker_stopped", worker=queue.name, finished=loop.finished)


def build_handler(settings: WorkerSettings, artifacts: Artifacts) -> Handler:
    """The handler of `settings.kind`, warmed up."""
    # Heavy imports belong to the process that serves, not to whoever imports this module.
    import torch

    from amn.errors import AmnError
    from amn.escalation import preset
    from amn.predictor import Predictor
    from workers.amn_worker import AmnHandler
    from workers.fallback_worker import FallbackHandler

    torch.set_num_threads(settings.threads)
    torch.set_num_interop_threads(1)
    try:
        if settings.kind == "fallback":
            predictor = Predictor.open(artifacts.model)
        else:
            predictor = Predictor.open(artifacts.model, artifacts.bank)
        if predictor.checkpoint.manifest.encoder_id != settings.encoder:
            raise NotReady(
                f"model {predictor.model_id} was trained on encoder "
                f"{predictor.checkpoint.manifest.encoder_id!r}, this worker is to serve {settings.encoder!r}"
            )
        predictor.warm_up(settings.queue.batch_max)
        if settings.kind == "fallback":
            return FallbackHandler(predictor)
        return AmnHandler(predictor, preset(artifacts.policy), settings)
    except AmnError as error:
        raise NotReady(str(error)) from error


def handler_model(handler: Handler) -> str:
    """Model id of a handler, for the log."""
    return str(getattr(getattr(handler, "_predictor", None), "model_id", ""))


def open_queue(settings: WorkerSettings) -> LeasedQueue:
    """The stream that this kind of worker reads."""
    keys = Keys(settings.producer.queue)
    stream = {"amn": keys.requests, "fallback": keys.fallback, "shadow": keys.shadow}[settings.kind]
    return LeasedQueue(settings, stream, worker_name(settings.kind))


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
