"""One message by apprise, in a process of its own: its plugins wait and read for as long as a receiver likes.

Reads the message as JSON from standard input, so that no secret is on a command line; writes what came of it.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys

from ops.alerts.sinks.answer import DEADLINE_S

_MEMORY_BYTES_MAX = 2 * 1024**3


class _Last(logging.Handler):
    """Keeps the last line that apprise had to say."""

    said = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.said = record.getMessage()


def main() -> None:
    """The process. Ends by itself, also when whoever started it is gone."""
    signal.alarm(int(DEADLINE_S) + 1)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY or most > _MEMORY_BYTES_MAX:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES_MAX, most))
    import apprise

    message, last = json.load(sys.stdin), _Last()
    logging.getLogger("apprise").addHandler(last)
    told = apprise.Apprise()
    told.add(message.pop("url"))
    accepted = bool(told.notify(**message))
    json.dump({"accepted": accepted, "said": last.said}, sys.stdout)


if __name__ == "__main__":
    main()
