"""An attempt sends a message to its sink, and writes the outcome to the outbox."""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

import redis
import structlog

from ops.alerts.alert import Alert, Kind, Message
from ops.alerts.config import Sinks
from ops.alerts.outbox import Attempt, Outbox, next_attempt_ms
from ops.alerts.settings import AlertSettings
from ops.alerts.sinks.alertmanager import Alertmanager, to_repeat
from ops.alerts.sinks.answer import SinkAnswer
from ops.alerts.sinks.base import Sink, SinkMessage
from ops.alerts.store import alert_of, alerts
from ops.clock import server_now_ms
from producer.keys import Keys

_LOG = structlog.get_logger("amn.alerts")

Clock = Callable[[], int]


def quiet() -> None:
    """httpx and apprise log whole addresses, and some of those are secrets."""
    for name in ("httpx", "httpcore", "apprise", "requests", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Delivery:
    """Makes attempts for one queue, each with the sinks as they are described then."""

    def __init__(self, client: redis.Redis, keys: Keys, sinks: Sinks, clock: Clock | None = None) -> None:
        quiet()
        self._client, self._keys, self._sinks = client, keys, sinks
        self._outbox = Outbox(client, keys)
        self._clock = clock or (lambda: server_now_ms(client))

    def deliver(self, attempt: Attempt) -> str:
        """Returns the outcome; "skipped" when another attempt took over."""
        config = self._sinks.now()
        sink = config.sinks.get(attempt.sink)
        begun = self._outbox.begin(attempt, self._clock())
        if sink is None or begun is None:
            return "skipped"
        message, taken_ms = begun
        answer = sink.send(self._envelope(message, sink.repeats_state, config.settings))
        now_ms, next_ms = self._clock(), 0
        if answer.outcome == "again":
            chance = random.random()  # noqa: S311  (it spreads retries, and guards nothing)
            next_ms = next_attempt_ms(attempt.number, now_ms, taken_ms, config.settings, chance)
            next_ms = max(next_ms, now_ms + answer.wait_ms) if next_ms else 0
        self._outbox.settle(attempt, message, sink, answer, now_ms=now_ms, next_ms=next_ms)
        self._log(attempt, message, answer, next_ms)
        return answer.outcome

    def repeat_state(self, name: str) -> str:
        """Sends what fires now, and what ended lately, to a sink that wants it every minute."""
        config, now_ms = self._sinks.now(), self._clock()
        sink = config.sinks.get(name)
        if not isinstance(sink, Alertmanager):
            return "skipped"
        known = to_repeat(alerts(self._client, self._keys), now_ms)
        known = [one for one in known if one.severity in sink.severities]
        if not known:
            return "skipped"
        message = Message(id="", kind="reminder", at_ms=now_ms, alert=known[0])
        answer = sink.send_all(known, self._envelope(message, False, config.settings))
        if answer.outcome != "accepted":
            _LOG.warning("state_not_repeated", sink=name, detail=answer.detail)
        return answer.outcome

    def _envelope(self, message: Message, anew: bool, settings: AlertSettings) -> SinkMessage:
        if anew:
            now = alert_of(self._client, self._keys, message.alert.id) or message.alert
            message = Message(id=message.id, kind=message.kind, at_ms=message.at_ms, alert=now)
        return SinkMessage(message=message, now_ms=self._clock(), queue=self._keys.queue, settings=settings)

    def _log(self, attempt: Attempt, message: Message, answer: SinkAnswer, next_ms: int) -> None:
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


def send_trial(sink: Sink, settings: AlertSettings, queue: str) -> dict[str, SinkAnswer]:
    """Sends a trigger and its resolve; the second only when the first was accepted."""
    quiet()
    now_ms = time.time_ns() // 1_000_000
    alert = Alert(
        id=uuid.uuid4().hex,
        rule="test",
        severity=sink.severities[0],
        summary="a test of this sink by `amn alerts test`; nothing is wrong",
        latest="nothing was wrong",
        runbook="test",
        phase="firing",
        since_ms=now_ms,
        fired_ms=now_ms,
        told_ms=now_ms,
    )
    ended = replace(alert, phase="ok", resolved_ms=now_ms)
    answers: dict[str, SinkAnswer] = {}
    steps: tuple[tuple[Kind, Alert], ...] = (("trigger", alert), ("resolve", ended))
    for kind, state in steps:
        message = Message(id=f"test-{alert.id[:8]}-{kind}", kind=kind, at_ms=now_ms, alert=state)
        envelope = SinkMessage(message=message, now_ms=now_ms, queue=queue, settings=settings)
        if answers:
            time.sleep(sink.pace_ms / 1000)
        answers[kind] = sink.send(envelope)
        if answers[kind].outcome != "accepted":
            break
    return answers
