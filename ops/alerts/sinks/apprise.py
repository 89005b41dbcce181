"""The sink for all that apprise knows, such as e-mail, Teams, Matrix or SMS.

Its plugins wait and read for as long as a receiver likes, so that each message has a process of its own:
`main` of this module. It reads the message as JSON from standard input, so that no secret is on a command
line, and writes the outcome to standard output.
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
        if ended.returncode:
            last = ended.stderr[-1000:].decode("utf-8", "replace").strip().splitlines()[-1:]
            detail = f"apprise ended with {ended.returncode}: {''.join(last)}"
            return SinkAnswer(outcome="again", detail=detail)
        accepted, said = json.loads(ended.stdout)
        if accepted:
            return SinkAnswer(outcome="accepted")
        return SinkAnswer(outcome="again", detail=f"apprise could not send it: {said}")


class _Last(logging.Handler):
    """Keeps the last line that apprise had to say."""

    said = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.said = record.getMessage()


def main() -> None:
    """Sends one message. Ends by itself, also when whoever started it is gone."""
    signal.alarm(int(DEADLINE_S) + 1)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY or most > _MEMORY_BYTES_MAX:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES_MAX, most))
    import apprise

    message, last = json.load(sys.stdin), _Last()
    logging.getLogger("apprise").addHandler(last)
    receiver = apprise.Apprise()
    receiver.add(message.pop("url"))
    accepted = bool(receiver.notify(**message))
    json.dump([accepted, last.said], sys.stdout)


if __name__ == "__main__":
    main()
