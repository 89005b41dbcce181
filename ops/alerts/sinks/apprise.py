"""The sink for all that apprise knows, such as e-mail, Teams, Matrix or SMS."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import ClassVar

from ops.alerts.secret import Secret
from ops.alerts.sinks.answer import DEADLINE_S, HUNG_MS, SinkAnswer
from ops.alerts.sinks.base import Sink, SinkMessage
from ops.alerts.wording import text, title
from ops.errors import SinksRefused
from workers.pool.child import our_environment, our_python


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

    def _send(self, envelope: SinkMessage) -> SinkAnswer:
        resolved = envelope.message.kind == "resolve"
        message = {
            "url": self.url.reveal(),
            "title": title(envelope.message, envelope.place),
            "body": text(envelope.message, envelope.runbook),
            "notify_type": "success" if resolved else "failure",
        }
        try:
            ended = subprocess.run(
                our_python("ops.alerts.sinks.apprise_child"),
                env=our_environment(),
                input=json.dumps(message).encode(),
                capture_output=True,
                timeout=DEADLINE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            detail = f"apprise did not end within {DEADLINE_S:g} s"
            return SinkAnswer(outcome="again", detail=detail, wait_ms=HUNG_MS)
        if ended.returncode:
            last = ended.stderr[-1000:].decode("utf-8", "replace").strip().splitlines()[-1:]
            return SinkAnswer(
                outcome="again", detail=f"apprise ended with {ended.returncode}: {''.join(last)}"
            )
        told = json.loads(ended.stdout)
        if told["accepted"]:
            return SinkAnswer(outcome="accepted")
        return SinkAnswer(outcome="again", detail=f"apprise could not send it: {told['said']}")
