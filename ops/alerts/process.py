"""The process of `amn alerts run`: the scheduler in a thread, and an RQ worker for the attempts."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
from rq import SimpleWorker
from rq.exceptions import StopRequested

from ops.alerts.config import Sinks, load, load_usable
from ops.alerts.delivery import Delivery
from ops.alerts.outbox import Attempt
from ops.alerts.sender import Sender
from ops.jobs import jobs_possible, rq_connection
from ops.known_jobs import Check, Function, KnownQueue, KnownWorker, is_name, is_text
from producer.errors import ServerError
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.connection import connect, driver_errors

_LOG = structlog.get_logger("amn.alerts")
_DELIVER, _REPEAT = "ops.alerts.delivery.deliver_job", "ops.alerts.delivery.repeat_job"
_IS_NUMBER: Check = (lambda value: type(value) is int and 0 < value < 2**31, "a number from 1 on")
_PAUSE_S = 1.0
_JOB_TIMEOUT_S, _RESULT_TTL_S, _FAILURE_TTL_S = 40, 60, 24 * 3600
#: A job that did not begin by then is not begun: its attempt's lease has run out.
_JOB_TTL_S = 60
#: As in ops/jobs.py; and how long a worker waits at most for a server that comes back.
_WORKER_TTL_S, _RECONNECT_S_MAX = 60, 5.0


def run(settings: ProducerSettings, config: Path | None, log_level: str) -> None:
    """Schedules and delivers until SIGTERM or Ctrl-C; the attempt at hand is finished first.

    The worker does not fork: an attempt is one request, and its process also has the scheduler's
    thread. On a cluster, which RQ cannot use, the scheduler makes the attempts itself.

    Raises:
        SinksRefused: The sinks cannot be used as they are described.
    """
    load_usable(config)
    sinks, keys, stopping = Sinks(lambda: load(config)), Keys(settings.queue), threading.Event()
    client = connect(settings)
    if not jobs_possible(settings.url):
        delivery = Delivery(client, keys, sinks)
        sender = Sender(client, keys, sinks, delivery.deliver, delivery.repeat_state)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
        sender.run(stopping, settings.url)
        return
    queue = KnownQueue(f"amn-alerts-{settings.queue}", rq_connection(settings))
    jobs = _Jobs(queue, Delivery(queue.connection, keys, sinks))
    sender = Sender(client, keys, sinks, jobs.deliver, jobs.repeat)
    failures: list[Exception] = []

    def schedule() -> None:
        try:
            sender.run(stopping, settings.url)
        except Exception as error:
            failures.append(error)
            os.kill(os.getpid(), signal.SIGTERM)  # an RQ worker without a scheduler would look alive

    thread = threading.Thread(target=schedule, name="amn-alerts-sender")
    thread.start()
    try:
        _work(jobs, stopping, settings.url, log_level)
    finally:
        stopping.set()
        thread.join()
    if failures:
        raise failures[0]


def _work(jobs: _Jobs, stopping: threading.Event, url: str, log_level: str) -> None:
    """Runs one RQ worker after the other: each ends when it loses its server."""
    quieter = "WARNING" if log_level == "info" else log_level.upper()  # the deliveries are logged by us

    def on_signal(number: int, _: FrameType | None) -> None:
        stopping.set()
        raise StopRequested

    while not stopping.is_set():
        try:
            for number in (signal.SIGTERM, signal.SIGINT):  # RQ puts its own in their place while it works
                signal.signal(number, on_signal)
            with driver_errors(url):
                _Worker(jobs, stopping).work(logging_level=quieter)
            stopping.wait(_PAUSE_S)
        except StopRequested:
            return
        except ServerError:
            stopping.wait(_PAUSE_S)  # the scheduler says that the server is away


class _Jobs:
    """Attempts as RQ jobs; what they are made with is this process's, and no job names it."""

    def __init__(self, queue: KnownQueue, delivery: Delivery) -> None:
        self.queue = queue
        attempt = {"line": is_text(128), "message": is_text(64), "number": _IS_NUMBER}
        kept = {"result_s": _RESULT_TTL_S, "failure_s": _FAILURE_TTL_S, "timeout_s": _JOB_TIMEOUT_S}
        self.functions = {
            _DELIVER: Function(
                run=lambda **words: delivery.deliver(Attempt(**words)), arguments=attempt, **kept
            ),
            _REPEAT: Function(
                run=lambda sink: delivery.repeat_state(sink),
                arguments={"sink": is_name()},
                **kept | {"result_s": 0, "failure_s": 0},
            ),
        }

    def deliver(self, attempt: Attempt) -> None:
        """One job an attempt; the number in its id tells a repeat from a new one."""
        words = {"line": attempt.line, "message": attempt.message, "number": attempt.number}
        self._enqueue(_DELIVER, words, f"{attempt.sink}-{attempt.message}-{attempt.number}")

    def repeat(self, sink: str) -> None:
        """A state that is not sent within its minute is old, and its job expires."""
        self._enqueue(_REPEAT, {"sink": sink}, f"repeat-{sink}-{uuid.uuid4().hex}")

    def _enqueue(self, function: str, words: dict[str, Any], name: str) -> None:
        self.queue.enqueue(function, kwargs=words, job_id=f"amn-alert-{name}", ttl=_JOB_TTL_S)


class _Worker(KnownWorker, SimpleWorker):
    """An RQ worker that tells when a person, and not a lost server, has stopped it."""

    max_connection_wait_time = _RECONNECT_S_MAX

    def __init__(self, jobs: _Jobs, stopping: threading.Event) -> None:
        super().__init__(jobs.queue, jobs.functions, _WORKER_TTL_S)
        self._stopping = stopping

    def handle_warm_shutdown_request(self) -> None:
        """RQ calls this at the first SIGTERM or SIGINT."""
        self._stopping.set()
        super().handle_warm_shutdown_request()  # type: ignore[no-untyped-call]
