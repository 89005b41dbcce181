"""Who delivers: a scheduler that hands out attempts, and the RQ worker that makes them."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
import structlog
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer

from ops.alerts.config import AlertsConfig, load
from ops.alerts.delivery import Delivery
from ops.alerts.outbox import Attempt, Outbox
from ops.alerts.store import Evaluator, apply_as
from ops.alerts.watch import watch
from ops.drift.leader import Leadership
from ops.drift.store import server_now_ms
from ops.jobs import jobs_possible, rq_connection
from producer.connection import connect, driver_errors
from producer.errors import ServerError
from producer.keys import Keys
from producer.settings import ProducerSettings

_LOG = structlog.get_logger("amn.alerts")
_TICK_S, _LEASE_MS, _EVERY_MS = 1.0, 15_000, 60_000
_HEARTBEAT_KEPT_S = 90 * 24 * 3600
_JOB_TIMEOUT_S, _RESULT_TTL_S, _FAILURE_TTL_S = 40, 60, 24 * 3600
#: As in ops/jobs.py; and how long a worker waits at most for a server that comes back.
_WORKER_TTL_S, _RECONNECT_S_MAX = 60, 5.0

#: Makes one attempt, or has it made.
Deliver = Callable[[Attempt], Any]
#: Repeats the state to the sink of this name.
Repeat = Callable[[str], Any]


class Sender:
    """The scheduler. Of several, one leads; any of them may die at any point."""

    def __init__(
        self, client: redis.Redis, keys: Keys, config: AlertsConfig, deliver: Deliver, repeat: Repeat
    ) -> None:
        self._client, self._keys, self._config = client, keys, config
        self._deliver, self._repeat = deliver, repeat
        self._outbox = Outbox(client, keys)
        self._leadership = Leadership(client, keys, _LEASE_MS, prefix=keys.alerts_prefix)
        self._looked_at_ms = 0

    def tick(self, now_ms: int | None = None) -> int:
        """Hands out what is due; once a minute also looks at the judge and at its own deliveries.

        Returns:
            Attempts handed out.
        """
        fence = self._leadership.lead()
        if not fence:
            return 0
        now_ms = server_now_ms(self._client) if now_ms is None else now_ms
        if now_ms - self._looked_at_ms >= _EVERY_MS:
            self._look(fence, now_ms)
            self._looked_at_ms = now_ms
        self._outbox.fan_out(self._config, now_ms)
        for alert in self._outbox.second(now_ms):
            _LOG.warning("alert_goes_to_secondary_sinks", alert=alert)
        attempts = self._outbox.lease(self._config, now_ms)
        for attempt in attempts:
            self._deliver(attempt)
        return len(attempts)

    def resign(self) -> None:
        """Lets another sender lead at once. Idempotent."""
        self._leadership.resign()

    def run(self, stopping: threading.Event, url: str) -> None:
        """Ticks until told to stop; waits for the server when it is away."""
        down = False
        while not stopping.is_set():
            try:
                with driver_errors(url):
                    self.tick()
                down = False
            except ServerError as error:
                if not down:
                    _LOG.warning("sender_waits_for_server", error=str(error))
                down = True
            stopping.wait(_TICK_S)
        try:
            with driver_errors(url):
                self.resign()
        except ServerError:
            pass  # the lease runs out by itself

    def _look(self, fence: int, now_ms: int) -> None:
        settings = self._config.settings
        findings = watch(self._client, self._keys, self._outbox, now_ms, settings)
        evaluator = Evaluator("sender", self._keys.alerts_prefix + "leader", fence)
        apply_as(self._client, self._keys, findings, now_ms, evaluator, settings)
        self._client.set(looked_key(self._keys), now_ms, ex=_HEARTBEAT_KEPT_S)
        for sink in self._config.sinks.values():
            if sink.repeats_state:
                self._repeat(sink.name)


def looked_key(keys: Keys) -> str:
    """The sender's heartbeat, epoch milliseconds."""
    return keys.alerts_prefix + "looked_ms"


def run(settings: ProducerSettings, config: Path | None, log_level: str) -> None:
    """Schedules and delivers until SIGTERM or Ctrl-C; the attempt at hand is finished first.

    The worker does not fork: an attempt is one request, and its process also has the scheduler's
    thread. On a cluster, which RQ cannot use, the scheduler makes the attempts itself.

    Raises:
        SinksRefused: The sinks cannot be used as they are described.
    """
    loaded, keys, stopping = load(config), Keys(settings.queue), threading.Event()
    client = connect(settings)
    if not jobs_possible(settings.url):
        delivery = Delivery(client, keys, loaded)
        _stop_on_signals(stopping)
        Sender(client, keys, loaded, delivery.deliver, delivery.repeat_state).run(stopping, settings.url)
        return
    jobs = _Jobs(rq_connection(settings), settings.queue, config)
    sender = Sender(client, keys, loaded, jobs.deliver, jobs.repeat)
    quieter = "WARNING" if log_level == "info" else log_level.upper()  # the deliveries are logged by us
    failures: list[BaseException] = []

    def schedule() -> None:
        try:
            sender.run(stopping, settings.url)
        except Exception as error:
            failures.append(error)
            os.kill(os.getpid(), signal.SIGTERM)  # an RQ worker without a scheduler would look alive

    thread = threading.Thread(target=schedule, name="amn-alerts-sender")
    thread.start()
    try:
        while not stopping.is_set():
            _Worker(jobs.queue, stopping).work(logging_level=quieter)
            stopping.wait(_TICK_S)
    finally:
        stopping.set()
        thread.join()
    if failures:
        raise failures[0]


class _Jobs:
    """Attempts as RQ jobs."""

    def __init__(self, connection: redis.Redis, queue: str, config: Path | None) -> None:
        self.queue = Queue(f"amn-alerts-{queue}", connection=connection, serializer=JSONSerializer)
        self._common = {"queue": queue, "config": str(config.resolve()) if config else ""}

    def deliver(self, attempt: Attempt) -> None:
        """One job an attempt; the number in its id tells a repeat from a new one."""
        words = {"line": attempt.line, "message": attempt.message, "number": attempt.number}
        self._enqueue("deliver_job", words, f"{attempt.sink}-{attempt.message}-{attempt.number}")

    def repeat(self, sink: str) -> None:
        """A state that is not sent within its minute is old, and its job expires."""
        self._enqueue("repeat_job", {"sink": sink}, f"repeat-{sink}-{uuid.uuid4().hex}")

    def _enqueue(self, function: str, words: dict[str, Any], name: str) -> None:
        self.queue.enqueue(
            f"ops.alerts.delivery.{function}",
            kwargs={**self._common, **words},
            job_id=f"amn-alert-{name}",
            job_timeout=_JOB_TIMEOUT_S,
            result_ttl=_RESULT_TTL_S if function == "deliver_job" else 0,
            failure_ttl=_FAILURE_TTL_S if function == "deliver_job" else 0,
            ttl=_EVERY_MS // 1000,
        )


class _Worker(SimpleWorker):
    """An RQ worker that tells when a person, and not a lost server, has stopped it."""

    max_connection_wait_time = _RECONNECT_S_MAX

    def __init__(self, queue: Queue, stopping: threading.Event) -> None:
        super().__init__(
            [queue], connection=queue.connection, serializer=JSONSerializer, worker_ttl=_WORKER_TTL_S
        )
        self._stopping = stopping

    def handle_warm_shutdown_request(self) -> None:
        """RQ calls this at the first SIGTERM or SIGINT."""
        self._stopping.set()
        super().handle_warm_shutdown_request()  # type: ignore[no-untyped-call]


def _stop_on_signals(stopping: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
