"""PagerDuty, Events API v2: one incident per alert id."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ops.alerts.secret import Secret
from ops.alerts.sinks.answer import SinkAnswer, post
from ops.alerts.sinks.base import Sink, SinkMessage
from ops.alerts.wording import clock, where

_SUMMARY_MAX = 1024
_LOUDNESS = {"page": "critical", "ticket": "warning"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PagerDuty(Sink):
    """Triggers and resolves by `dedup_key`; a repeat of either changes nothing there.

    Attributes:
        routing_key: Integration key of the service; a resolve needs the same one as its trigger.
        url: Of the events API; another one for the EU region.
    """

    secrets: ClassVar[tuple[str, ...]] = ("routing_key",)

    routing_key: Secret
    url: str | Secret = field(default="https://events.pagerduty.com/v2/enqueue", repr=False)

    def _send(self, envelope: SinkMessage) -> SinkAnswer:
        return post(self.url, json=self.event(envelope))

    def event(self, envelope: SinkMessage) -> dict[str, Any]:
        """The body."""
        message, alert = envelope.message, envelope.message.alert
        event: dict[str, Any] = {
            "routing_key": self.routing_key.reveal(),
            "event_action": "resolve" if message.kind == "resolve" else "trigger",
            "dedup_key": alert.id,
        }
        if message.kind == "resolve":
            return event
        event["payload"] = {
            "summary": f"{alert.rule}{where(alert)}, on {envelope.place}: {alert.summary}"[:_SUMMARY_MAX],
            "source": f"amn/{envelope.settings.environment or 'default'}/{envelope.queue}",
            "severity": _LOUDNESS[alert.severity],
            "timestamp": clock(alert.since_ms),
            "component": alert.model,
            "group": alert.lane,
            "class": alert.rule,
            "custom_details": {**alert.values, "runbook": envelope.runbook, "message": message.id},
        }
        event["client"] = "amn"
        if envelope.runbook.startswith("https://"):
            event["links"] = [{"href": envelope.runbook, "text": "runbook"}]
        return event
