"""The reader of a client's reply stream; it yields its I/O, to a thread or to a task of an event loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

from producer.errors import ServerUnavailable, WireError
from producer.keys import REPLY, Keys
from producer.session.inflight import Inflight
from producer.session.losses import Losses
from producer.session.outage import Outage, pause_ms
from producer.transport.clock import ServerClock
from producer.transport.connection import DRIVER_ERRORS, translated
from producer.transport.steps import Steps
from producer.transport.verbs import Verb

_LOG = logging.getLogger("amn.producer")
#: Replies taken in one read.
READ_COUNT = 512
#: Bytes that one read should not exceed by much: a server that copies more keeps everybody else waiting.
READ_BYTES = 2 * 1024**2
#: A blocking read returns at least this often, so that a stop is noticed without a server.
BLOCK_MS = 500
#: Read replies that may lie in the stream: their deletion is an answer to wait for, and to take, too.
TAKEN_BYTES = 32 * 1024
_BEGINNING = b"0-0"


class ReplyCursor:
    """Reads one client's reply stream, each entry once, through any number of reconnects.

    Entries that were taken are deleted by their ids, and the stream is then read from its beginning. So an
    answer is found, and never deleted unread, also in a stream that was made anew by a server whose clock
    went back.

    Attributes:
        stream: Its key.
    """

    def __init__(self, keys: Keys, client: str, inflight: Inflight) -> None:
        self.stream = keys.replies(client)
        self._stream = self.stream.encode()
        self._standing = keys.standing
        self._inflight = inflight
        self._losses = Losses(inflight)
        self._last = _BEGINNING
        #: Ids that were read and are in the stream still, as far as we know; and those being deleted.
        self._taken: set[bytes] = set()
        self._deleted: set[bytes] = set()
        self._read_bytes = self._largest_bytes = 0
        self._steps = Steps(READ_COUNT)
        self._count = READ_COUNT
        self._idle = self._asked = self._over = self._foreign = False

    def anew(self) -> ReplyCursor:
        """A cursor that reads on in the place of this one, in which a call may still be."""
        other = copy(self)
        other._taken, other._deleted, other._last = self._taken | self._deleted, set(), _BEGINNING
        other._losses, other._asked, other._over = Losses(self._inflight), False, False
        return other

    def commands(self, blocks: bool = True) -> list[tuple[Any, ...]]:
        """One round trip: blocks for more, after a deletion when much was read or nothing more came.

        It is asked for again and again, also while the server is away: the time to look for lost requests.
        """
        inflight = self._inflight
        if self._deleted:  # who sent that deletion did not take the answer
            self._taken, self._deleted = self._taken | self._deleted, set()
        self._asked = inflight.clock_s() >= inflight.sweep_at_s and inflight.sweep()
        commands: list[tuple[Any, ...]] = [("HGETALL", self._standing)] if self._asked else []
        if self._foreign:  # something else lies where our answers should: none could be put there
            commands.append(("DEL", self.stream))
        elif self._taken and not self._over and (not blocks or self._idle or self._read_bytes >= TAKEN_BYTES):
            commands.append(("XDEL", self.stream, *self._taken))
            self._deleted, self._taken = self._taken, set()
            self._read_bytes, self._last = 0, _BEGINNING
        self._count = min(self._steps.size, max(1, READ_BYTES // max(1, self._largest_bytes)))
        wait = ("BLOCK", BLOCK_MS) if blocks else ()
        return [*commands, ("XREAD", "COUNT", self._count, *wait, "STREAMS", self.stream, self._last)]

    def take(self, answers: Sequence[Any], own: bool = False) -> None:
        """Settles the requests that the last answer's entries answer, and moves on.

        A caller who takes its `own` answer gets every error, and leaves that entry to the next read.
        """
        if isinstance(answers[-1], Exception):
            raise answers[-1]
        rows = self._rows(answers[-1])
        if self._steps.size < self._steps.size_max:
            self._steps.note_came()
        self._idle, self._foreign = not rows, False
        # They stay: rights of an earlier version, or a caller who read what came of it, and left.
        if len(answers) < 2 or isinstance(answers[-2], Exception):
            self._taken |= self._deleted
        self._deleted = set()
        if rows:
            self._settle([row for row in rows if row[0] not in self._taken], own)
            self._last = rows[-1][0]
        if self._asked or self._over:
            self._search(answers[0], len(rows) < self._count)

    def _search(self, said: Any, whole: bool) -> None:
        """Looks for lost requests in what workers said, and in the stream once it was read as a whole."""
        if self._asked and self._losses.note(said) and not self._over:
            # The whole stream is the proof: one that was made anew may have answers before `_last`.
            self._over, self._last = True, _BEGINNING
        elif self._over and whole:
            self._over = False
            self._losses.end_lost()

    def failed(self, error: BaseException) -> None:
        """Notes that a round trip failed; the next one takes less, in case its answer was too large."""
        self._steps.note_lost(self._count)
        self._foreign = "WRONGTYPE" in str(error)
        self._taken, self._deleted = self._taken | self._deleted, set()
        self._losses.restart()

    def _rows(self, found: Any) -> list[tuple[bytes, Any]]:
        if not found:
            return []
        try:
            [[stream, rows]] = found
            first, last = (tuple(map(int, one.split(b"-"))) for one in (rows[0][0], self._last))
            in_step = stream == self._stream and first > last
        except (TypeError, ValueError, IndexError, AttributeError):
            in_step = False
        if not in_step:
            raise ServerUnavailable("the server's answers came out of step; the connection is opened anew")
        return rows  # type: ignore[no-any-return]

    def _settle(self, rows: list[tuple[bytes, Any]], own: bool) -> None:
        for entry_id, fields in rows:
            try:
                if fields[0] == REPLY:
                    payload = fields[1]
                    self._read_bytes += len(payload)
                    self._largest_bytes = max(len(payload), self._largest_bytes - self._largest_bytes // 8)
                    self._inflight.on_reply(payload, entry_id)
            except Exception as error:  # one that we cannot take must not keep the others from those who wait
                if own:
                    raise
                self._skip(error)
            self._taken.add(entry_id)  # now: an interrupt leaves the others to the next read

    def _skip(self, error: Exception) -> None:
        self._inflight.odd += 1
        what = "reply_undecodable" if isinstance(error, WireError) else "reply_odd"
        _LOG.error("%s: %s: %s", what, type(error).__name__, error)


class Reader:
    """Feeds a cursor, through any outage, until it is stopped: it never ends while somebody waits.

    A subclass says how commands go out together, and those of the cursor, how to drop the connection, how to
    wait, and when to end.

    Attributes:
        claimed: Whether it should `rest`, so that a caller can read in its place.
    """

    each: Callable[..., Any]
    exchange: Callable[[], Any]
    drop: Callable[[], Any]
    rest: Callable[[], Any]
    claimed = False
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
                if self.claimed:
                    yield (self.rest,)
                    if self.stopping():
                        return
                self._cursor.take((yield (self.exchange,)))
                if failures:
                    failures = 0
                    outage.over()
            except Exception as error:
                if self.stopping():
                    return
                failures += 1
                self._cursor.failed(error)
                outage.failed(translated(error, self._url) if isinstance(error, DRIVER_ERRORS) else error)
                yield (self.drop,)
                yield self.pause, pause_ms(failures) / 1000
