"""A test message to one sink, without a server."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

from ops.alerts.alert import Alert, Kind, Message
from ops.alerts.delivery import quiet
from ops.alerts.settings import AlertSettings
from ops.alerts.sinks.answer import SinkAnswer
from ops.alerts.sinks.base import Sink, SinkMessage


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
