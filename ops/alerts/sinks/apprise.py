"""Everything else: what apprise knows, such as e-mail, Teams, Matrix or SMS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import httpx

from ops.alerts.secret import Secret
from ops.alerts.sinks.answer import Answer
from ops.alerts.sinks.base import Envelope, Sink
from ops.alerts.wording import text, title
from ops.errors import SinksRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class Apprise(Sink):
    """One service by its apprise URL.

    Attributes:
        url: Such as mailtos://user:password@example.com; it holds credentials.
    """

    pace_ms: ClassVar[int] = 1_000
    secrets: ClassVar[tuple[str, ...]] = ("url",)

    url: Secret

    def __post_init__(self) -> None:
        try:
            import apprise
        except ModuleNotFoundError:
            raise SinksRefused(
                f"sink {self.name} needs the package apprise: pip install 'amn-queue[apprise]'"
            ) from None
        if apprise.Apprise.instantiate(self.url.reveal(), suppress_exceptions=True) is None:
            raise SinksRefused(
                f"sink {self.name}: apprise does not understand its url; its documentation lists the forms"
            )

    def send(self, http: httpx.Client, envelope: Envelope) -> Answer:
        """One message; apprise has a connection of its own."""
        import apprise

        told = apprise.Apprise()
        told.add(self.url.reveal())
        resolved = envelope.message.kind == "resolve"
        accepted = told.notify(
            title=title(envelope.message),
            body=text(envelope.message, envelope.runbook),
            notify_type=apprise.NotifyType.SUCCESS if resolved else apprise.NotifyType.FAILURE,
        )
        return (
            Answer(outcome="accepted")
            if accepted
            else Answer(outcome="again", detail="apprise could not send it")
        )
