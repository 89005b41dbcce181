"""The text of a message to a person."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from ops.alerts.alert import Alert, Message

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


def span(length_ms: int) -> str:
    """A length of time in two units at most."""
    seconds = max(length_ms, 0) // 1000
    for name, size, next_name, next_size in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60)):
        if seconds >= size:
            rest = seconds % size // next_size
            return f"{seconds // size} {name}" + (f" {rest} {next_name}" if rest else "")
    return f"{seconds // 60} min" if seconds >= 60 else f"{seconds} s"


def parse_span(text: str) -> int:
    """`90s`, `30m`, `2h` or `3d` in milliseconds.

    Raises:
        ValueError: Anything else.
    """
    match = re.fullmatch(r"(\d{1,5})\s*(s|m|min|h|d)", text.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"{text!r} is no length of time; write 90s, 30m, 2h or 3d")
    return int(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}[match[2]] * 1000
