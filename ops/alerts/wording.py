"""The text of a message to a person."""

from __future__ import annotations

from datetime import UTC, datetime

from ops.alerts.alert import Alert, Message
from ops.clock import span

_HEADS = {"trigger": "", "raised": "now a page: ", "reminder": "still: ", "resolve": "resolved: "}


def title(message: Message, place: str) -> str:
    """One line: how loud, what happened, where; `place` is the queue's."""
    alert = message.alert
    return f"[{alert.severity.upper()}] {_HEADS[message.kind]}{alert.rule}{where(alert)}, on {place}"


def text(message: Message, runbook: str) -> str:
    """A few lines: what was seen, since when, what to do."""
    alert = message.alert
    lines = [alert.summary, f"since {clock(alert.since_ms)}"]
    if message.kind == "resolve":
        lines[-1] += f", for {span(alert.resolved_ms - alert.since_ms)}"
        lines.append(f"now: {alert.latest}")
    else:
        lines.append(f"runbook: {runbook}")
    lines.append(f"alert {alert.id}")
    return "\n".join(line for line in lines if line)


def where(alert: Alert) -> str:
    """Model and lane, if the alert has any."""
    model = f" of {alert.model}" if alert.model else ""
    return f"{model} in lane {alert.lane}" if alert.lane else model


def clock(at_ms: int) -> str:
    """RFC 3339, UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
