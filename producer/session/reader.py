"""The reply reader: one connection that waits for answers, in a thread or in a task of an event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from producer.session.outage import Outage, pause_ms
from producer.session.replies import ReplyCursor
from producer.transport.clock import ServerClock
from producer.transport.connection import DRIVER_ERRORS, translated
from producer.transport.verbs import Verb


class Reader:
    """Feeds a cursor, through any outage, until it is stopped: it never ends while somebody waits.

    A subclass says how commands go out together, how to drop the connection, how to wait, and when to end.
    """

    each: Callable[..., Any]
    drop: Callable[[], Any]
    pause: Callable[[float], Any]
    stopping: Callable[[], bool]

    def __init__(self, url: str, clock: ServerClock, cursor: ReplyCursor) -> None:
        self._url, self._clock, self._cursor = url, clock, cursor

    def reading(self) -> Verb[None]:
        """Reads on and on; asks for the server's time now and then."""
        outage, failures = Outage("reply_reader"), 0
        while not self.stopping():
            try:
                if self._clock.due:
                    asked_at_s = self._clock.asks()
                    [answer] = yield self.each, [("TIME",)]
                    self._clock.measured(asked_at_s, answer)
                answers = yield self.each, self._cursor.commands()
                if isinstance(answers[-1], Exception):
                    raise answers[-1]
                self._cursor.take(answers)
                if failures:
                    failures = 0
                    outage.over()
            except Exception as error:
                failures += 1
                self._cursor.failed(error)
                outage.failed(translated(error, self._url) if isinstance(error, DRIVER_ERRORS) else error)
                yield (self.drop,)
                yield self.pause, pause_ms(failures) / 1000
