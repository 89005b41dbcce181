"""One attempt: the message to its sink, and what came of it to the outbox. What an RQ job does."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import redis
import structlog
from rq import get_current_job

from ops.alerts.alert import Message
from ops.alerts.config import AlertsConfig, load
from ops.alerts.outbox import Attempt, Outbox, next_attempt_ms
from ops.alerts.sinks.alertmanager import Alertmanager, to_repeat
from ops.alerts.sinks.answer import Answer
from ops.alerts.sinks.base import Envelope, Sink
from ops.alerts.store import alert_of, alerts
from ops.drift.store import server_now_ms
from producer.keys import Keys

_LOG = structlog.get_logger("amn.alerts")
_TIMEOUT = httpx.Timeout(10.0, connect=5.0)
HEADERS = {"User-Agent": "amn-queue"}

Clock = Callable[[], int]


def quiet() -> None:
    """httpx and apprise log whole addresses, and some of those are secrets."""
    for name in ("httpx", "httpcore", "apprise", "requests", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Delivery:
    """Makes attempts for one queue.

    Attributes:
        http: Its timeouts are far below an attempt's lease.
    """

    def __init__(
        self, client: redis.Redis, keys: Keys, config: AlertsConfig, clock: Clock | None = None
    ) -> None:
        quiet()
        self.http = httpx.Client(timeout=_TIMEOUT, headers=HEADERS)
        self._client, self._keys, self._config = client, keys, config
        self._outbox = Outbox(client, keys)
        self._clock = clock or (lambda: server_now_ms(client))

    def deliver(self, attempt: Attempt) -> str:
        """Returns the outcome; "skipped" when another attempt took over."""
        sink = self._config.sinks.get(attempt.sink)
        begun = self._outbox.begin(attempt, self._clock())
        if sink is None or begun is None:
            return "skipped"
        message, taken_ms = begun
        answer = self._send(sink, message)
        now_ms, next_ms = self._clock(), 0
        if answer.outcome == "again":
            settings = self._config.settings
            chance = random.random()  # noqa: S311  (it spreads retries, and guards nothing)
            next_ms = next_attempt_ms(attempt.number, now_ms, taken_ms, settings, chance)
            next_ms = max(next_ms, now_ms + answer.wait_ms) if next_ms else 0
        self._outbox.settle(attempt, message, sink, answer, now_ms=now_ms, next_ms=next_ms)
        self._log(attempt, message, answer, next_ms)
        return answer.outcome

    def repeat_state(self, name: str) -> str:
        """Sends what fires now, and what ended lately, to a sink that wants it every minute."""
        sink, now_ms = self._config.sinks.get(name), self._clock()
        if not isinstance(sink, Alertmanager):
            return "skipped"
        known = to_repeat(alerts(self._client, self._keys), now_ms)
        known = [one for one in known if one.severity in sink.severities]
        if not known:
            return "skipped"
        message = Message(id="", kind="reminder", at_ms=now_ms, alert=known[0])
        answer = sink.send_all(self.http, known, self._envelope(message, sink))
        if answer.outcome != "accepted":
            _LOG.warning("state_not_repeated", sink=name, detail=answer.detail)
        return answer.outcome

    def _send(self, sink: Sink, message: Message) -> Answer:
        """One attempt; a fault of ours, or of a library, ends it like any other failure."""
        try:
            return sink.send(self.http, self._envelope(message, sink))
        except Exception as error:
            _LOG.exception("sink_failed", sink=sink.name, message=message.id)
            return Answer(outcome="again", detail=f"{type(error).__name__}; see the sender's log")

    def _envelope(self, message: Message, sink: Sink) -> Envelope:
        if sink.repeats_state and message.id:
            now = alert_of(self._client, self._keys, message.alert.id) or message.alert
            message = Message(id=message.id, kind=message.kind, at_ms=message.at_ms, alert=now)
        return Envelope(
            message=message, now_ms=self._clock(), queue=self._keys.queue, settings=self._config.settings
        )

    def _log(self, attempt: Attempt, message: Message, answer: Answer, next_ms: int) -> None:
        say = _LOG.info if answer.outcome == "accepted" else _LOG.warning
        say(
            "alert_delivered" if answer.outcome == "accepted" else "alert_not_delivered",
            sink=attempt.sink,
            message=message.id,
            told=message.kind,
            rule=message.alert.rule,
            attempt=attempt.number,
            detail=answer.detail,
            next_ms=next_ms,
        )


def deliver_job(*, queue: str, config: str, line: str, message: str, number: int) -> str:
    """The job of one attempt."""
    with _of_job(queue, config) as delivery:
        return delivery.deliver(Attempt(line=line, message=message, number=number))


def repeat_job(*, queue: str, config: str, sink: str) -> str:
    """The job of one repeat of the state."""
    with _of_job(queue, config) as delivery:
        return delivery.repeat_state(sink)


@contextmanager
def _of_job(queue: str, config: str) -> Iterator[Delivery]:
    job = get_current_job()
    if job is None:
        raise RuntimeError("a delivery job runs in an RQ worker")
    delivery = Delivery(job.connection, Keys(queue), load(Path(config) if config else None))
    with delivery.http:
        yield delivery
