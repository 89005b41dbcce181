"""Slack, incoming webhook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ops.alerts.alert import Kind
from ops.alerts.secret import Secret
from ops.alerts.sinks.answer import SinkAnswer, post
from ops.alerts.sinks.base import Sink, SinkMessage
from ops.alerts.wording import text, title

_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Slack(Sink):
    """Says when an incident begins, becomes a page and ends.

    Such a webhook cannot edit what it wrote, so reminders would only pile up; and it takes about one
    message a second.

    Attributes:
        url: Whoever knows it may write, so it is a secret.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("trigger", "raised", "resolve")
    pace_ms: ClassVar[int] = 1_000
    secrets: ClassVar[tuple[str, ...]] = ("url",)

    url: Secret

    def _send(self, envelope: SinkMessage) -> SinkAnswer:
        said = f"*{title(envelope.message, envelope.place)}*\n{text(envelope.message, envelope.runbook)}"
        return post(self.url, json={"text": said.translate(_ESCAPES)})
