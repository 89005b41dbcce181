"""What every sink has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import httpx

from ops.alerts.alert import SEVERITIES, Kind, Message
from ops.alerts.settings import AlertSettings
from ops.alerts.sinks.answer import Answer
from ops.drift.findings import Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
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
        """Whether this sink is sent such a message."""
        return kind in self.kinds and severity in self.severities

    @abstractmethod
    def send(self, http: httpx.Client, envelope: Envelope) -> Answer:
        """One attempt. Never raises for what the other side does."""
