"""Prometheus Alertmanager, API v2: the state of now, again every minute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ops.alerts.alert import Alert
from ops.alerts.secret import Secret, plain
from ops.alerts.sinks.answer import SinkAnswer, post
from ops.alerts.sinks.base import Sink, SinkMessage
from ops.alerts.wording import clock

#: A firing alert ends by itself so long after it was last sent: five repeats.
_ENDS_AFTER_MS = 5 * 60_000
#: A resolved one is repeated for so long, as Prometheus does.
RESOLVED_FOR_MS = 15 * 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Alertmanager(Sink):
    """Sends what holds now, whatever the message said; late messages do no harm.

    Attributes:
        url: Base address, such as http://127.0.0.1:9093.
        token: Bearer token, if it asks for one.
    """

    repeats_state: ClassVar[bool] = True
    secrets: ClassVar[tuple[str, ...]] = ("token",)

    url: str | Secret = field(repr=False)
    token: Secret | None = None

    def send_all(self, alerts: Sequence[Alert], envelope: SinkMessage) -> SinkAnswer:
        """Sends all alerts in one request; `envelope` says when and for whom."""
        return self._attempted(lambda: self._send_all(alerts, envelope))

    def _send(self, envelope: SinkMessage) -> SinkAnswer:
        return self._send_all([envelope.message.alert], envelope)

    def _send_all(self, alerts: Sequence[Alert], envelope: SinkMessage) -> SinkAnswer:
        headers = {"Authorization": f"Bearer {self.token.reveal()}"} if self.token else {}
        body = [self.entry(alert, envelope) for alert in alerts]
        url = f"{plain(self.url).rstrip('/')}/api/v2/alerts"
        return post(url, headers, json=body)

    def entry(self, alert: Alert, envelope: SinkMessage) -> dict[str, Any]:
        """One alert. Labels are its identity: no number and no time is among them."""
        labels = {
            "alertname": f"amn_{alert.rule}",
            "severity": alert.severity,
            "environment": envelope.settings.environment,
            "queue": envelope.queue,
            "model": alert.model,
            "lane": alert.lane,
        }
        annotations = {
            "summary": alert.summary,
            "runbook_url": envelope.settings.runbook(alert.runbook),
            "alert": alert.id,
            **{f"value_{name}": str(value) for name, value in alert.values.items()},
        }
        ends_ms = alert.resolved_ms if alert.phase == "ok" else envelope.now_ms + _ENDS_AFTER_MS
        return {
            "labels": {name: value for name, value in labels.items() if value},
            "annotations": annotations,
            "startsAt": clock(alert.fired_ms),
            "endsAt": clock(ends_ms),
        }


def to_repeat(alerts: Sequence[Alert], now_ms: int) -> list[Alert]:
    """Returns the told alerts that fire, and those resolved a short while ago."""
    return [
        alert
        for alert in alerts
        if (alert.phase in ("firing", "recovering") and alert.told_ms)
        or (alert.phase == "ok" and alert.told_severity and now_ms - alert.resolved_ms < RESOLVED_FOR_MS)
    ]
