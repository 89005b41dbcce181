"""The base of every sink."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar

from ops.alerts.alert import SEVERITIES, Kind, Message
from ops.alerts.secret import Secret
from ops.alerts.settings import AlertSettings
from ops.alerts.sinks.answer import SinkAnswer, shown
from ops.findings import Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkMessage:
    """A message on its way.

    Attributes:
        message: What is told.    now_ms: Of this attempt.
        queue: Whose alerts these are.    settings: Name of the installation, links.
    """

    message: Message
    now_ms: int
    queue: str
    settings: AlertSettings

    @property
    def place(self) -> str:
        """Queue and installation, for a person."""
        environment = self.settings.environment
        return f"queue {self.queue}" + (f" of {environment}" if environment else "")

    @property
    def runbook(self) -> str:
        """Link, or file and heading."""
        return self.settings.runbook(self.message.alert.runbook)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink(ABC):
    """Somewhere to deliver to.

    Attributes:
        name: Of the operator's choice.
        severities: What it wants to hear.
        secondary: Told only when no primary sink accepts.
    """

    #: Which messages it is sent.
    kinds: ClassVar[tuple[Kind, ...]] = ("trigger", "raised", "reminder", "resolve")
    #: Least time between two messages.
    pace_ms: ClassVar[int] = 0
    #: Wants the state of now whatever the message was, and again every minute.
    repeats_state: ClassVar[bool] = False

    name: str
    severities: tuple[Severity, ...] = SEVERITIES
    secondary: bool = False

    def wants(self, kind: Kind, severity: str) -> bool:
        """Says whether this sink is sent such a message."""
        return kind in self.kinds and severity in self.severities

    def send(self, envelope: SinkMessage) -> SinkAnswer:
        """Makes one attempt. An exception on the way is its outcome, and is tried again."""
        return self._attempted(lambda: self._send(envelope))

    def _attempted(self, send: Callable[[], SinkAnswer]) -> SinkAnswer:
        try:
            answer = send()
        except Exception as error:
            answer = SinkAnswer(outcome="again", detail=f"{type(error).__name__}: {error}")
        values = [getattr(self, field.name) for field in fields(self)]
        flat = [one for value in values for one in (value if isinstance(value, tuple) else (value,))]
        return replace(answer, detail=shown(answer.detail, [one for one in flat if isinstance(one, Secret)]))

    @abstractmethod
    def _send(self, envelope: SinkMessage) -> SinkAnswer:
        """Makes one attempt; may raise anything."""
