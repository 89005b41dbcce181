"""The sink for all that apprise knows, such as e-mail, Teams, Matrix or SMS.

Its plugins wait and read for as long as a receiver likes, so that each message has a process of its own:
`main` of this module. It reads the message as JSON from standard input, so that no secret is on a command
line; its exit code is the outcome, and the last line on standard error says why.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

from ops.alerts.secret import Secret
from ops.alerts.sinks.base import Message, Sink, SinkAnswer
from ops.alerts.sinks.http import DEADLINE_S, HUNG_MS
from ops.errors import SinksRefused
from workers.pool.child import our_environment, our_python

_MEMORY_BYTES_MAX = 2 * 1024**3


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

    def _send(self, message: Message) -> SinkAnswer:
        notify_type = "success" if message.kind == "resolve" else "failure"
        told = {"title": message.title, "body": message.text, "notify_type": notify_type}
        try:
            ended = subprocess.run(
                our_python("ops.alerts.sinks.apprise"),
                env=our_environment(),
                input=json.dumps({"url": self.url.reveal(), **told}).encode(),
                capture_output=True,
                timeout=DEADLINE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            detail = f"apprise did not end within {DEADLINE_S:g} s"
            return SinkAnswer(outcome="again", detail=detail, wait_ms=HUNG_MS)
        if not ended.returncode:
            return SinkAnswer(outcome="accepted")
        last = ended.stderr[-1000:].decode("utf-8", "replace").strip().splitlines()[-1:]
        detail = f"apprise ended with {ended.returncode}: {''.join(last)}"
        return SinkAnswer(outcome="again", detail=detail)


def main() -> None:
    """Sends one message. Ends by itself, also when whoever started it is gone."""
    signal.alarm(int(DEADLINE_S) + 1)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY or most > _MEMORY_BYTES_MAX:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES_MAX, most))
    import apprise

    logging.basicConfig(format="%(message)s")
    message, receiver = json.load(sys.stdin), apprise.Apprise()
    receiver.add(message.pop("url"))
    sys.exit(0 if receiver.notify(**message) else 1)


if __name__ == "__main__":
    main()
