"""The base of every sink, and the message that it is sent."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import ClassVar, Literal

from ops.alerts.alert import SEVERITIES, Alert, Kind
from ops.alerts.secret import Secret
from ops.alerts.settings import AlertSettings
from ops.clock import span
from ops.findings import Severity

_HEADS = {"trigger": "", "raised": "now a page: ", "reminder": "still: ", "resolve": "resolved: "}
_SHOWN_MAX = 200
#: A part of a secret that is shorter is no clue.
_CLUE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """News about an alert on its way to a sink.

    Attributes:
        now_ms: Time of this attempt.    queue: Name of the queue that these alerts are about.
    """

    kind: Kind
    alert: Alert
    now_ms: int
    queue: str
    settings: AlertSettings

    @property
    def id(self) -> str:
        """Name of the message, which is the same at every attempt and at every sink."""
        alert = self.alert
        parts = [alert.id[:8], alert.incident or str(alert.since_ms), self.kind, alert.severity]
        return "-".join(parts + [str(alert.told_ms)] * (self.kind == "reminder"))

    @property
    def at_ms(self) -> int:
        """Time of the news."""
        alert = self.alert
        return alert.resolved_ms if self.kind == "resolve" else max(alert.told_ms, alert.fired_ms)

    @property
    def origin(self) -> str:
        """Queue and installation, for a person."""
        environment = self.settings.environment
        return f"queue {self.queue}" + (f" of {environment}" if environment else "")

    @property
    def source(self) -> str:
        """Installation and queue, for a program."""
        return f"amn/{self.settings.environment or 'default'}/{self.queue}"

    @property
    def runbook(self) -> str:
        """Link, or file and heading."""
        return self.settings.runbook(self.alert.runbook)

    @property
    def title(self) -> str:
        """One line: how loud, what happened, where."""
        alert = self.alert
        return f"[{alert.severity.upper()}] {_HEADS[self.kind]}{alert.rule}{series(alert)}, on {self.origin}"

    @property
    def text(self) -> str:
        """A few lines: what was seen, since when, what to do."""
        alert = self.alert
        lines = [alert.summary, f"since {clock(alert.since_ms)}", f"runbook: {self.runbook}"]
        if self.kind == "resolve":
            lines[1] += f", for {span(alert.resolved_ms - alert.since_ms)}"
            lines[2] = f"now: {alert.latest}"
        return "\n".join(line for line in (*lines, f"alert {alert.id}") if line)


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkAnswer:
    """The outcome of an attempt.

    Attributes:
        outcome: "accepted"; "again" for later; "refused" for never.
        detail: Text for a person; no secret.
        wait_ms: How long this sink wants to be left alone; 0 for no wish.
    """

    outcome: Literal["accepted", "again", "refused"]
    detail: str = ""
    wait_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink(ABC):
    """A receiver of messages.

    Attributes:
        name: The operator's choice.
        severities: The severities that it is told of.
        secondary: Told only when no primary sink accepts.
    """

    reminded: ClassVar[bool] = True
    #: Least time between two messages.
    pace_ms: ClassVar[int] = 0
    #: How often it wants to hear the state of now again; 0 for never.
    repeat_ms: ClassVar[int] = 0
    #: Fields that hold secrets.
    secrets: ClassVar[tuple[str, ...]] = ()

    name: str
    severities: tuple[Severity, ...] = SEVERITIES
    secondary: bool = False

    def wants(self, kind: Kind, severity: str) -> bool:
        """True if this sink is sent such a message."""
        return severity in self.severities and (self.reminded or kind != "reminder")

    def send(self, message: Message) -> SinkAnswer:
        """Makes one attempt. An exception on the way is its outcome, and is tried again."""
        try:
            answer = self._send(message)
        except Exception as error:
            answer = SinkAnswer(outcome="again", detail=f"{type(error).__name__}: {error}")
        values = [getattr(self, field.name) for field in fields(self)]
        flat = [one for value in values for one in (value if isinstance(value, tuple) else (value,))]
        return replace(answer, detail=shown(answer.detail, [one for one in flat if isinstance(one, Secret)]))

    @abstractmethod
    def _send(self, message: Message) -> SinkAnswer:
        """Makes one attempt; may raise anything."""


def shown(text: str, secrets: Iterable[Secret]) -> str:
    """One short line of an answer or an error, without the secrets in it or any part of them."""
    clues = {part for one in secrets for part in (one.reveal(), *re.split(r"[/?&=@:]+", one.reveal()))}
    for clue in sorted(clues, key=len, reverse=True):
        if len(clue) >= _CLUE:
            text = text.replace(clue, "***")
    return "".join(one if one.isprintable() else " " for one in text).strip()[:_SHOWN_MAX]


def series(alert: Alert) -> str:
    """Model and lane, if the alert has any."""
    model = f" of {alert.model}" if alert.model else ""
    return f"{model} in lane {alert.lane}" if alert.lane else model


def clock(at_ms: int) -> str:
    """RFC 3339, UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
