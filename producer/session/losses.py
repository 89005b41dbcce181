"""Tells which requests the server no longer has. No I/O: the reply readers bring what it says.

Workers say each second where the streams stand (workers/lua/standing.lua): the first and the last entry of
each. A request that got in lies at or below the last one of its stream. Once the first one there is beyond
that, it has left: it was ended, or went on to the next stream, or the server lost it. When it has left the
last stream, and the whole reply stream, read after that, holds no answer to it, none will come.

That holds whatever the clocks say and whichever keys expired. It costs one small read every two seconds, and
only while a request waits for longer than `OVERDUE_S`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from producer.errors import RequestLost
from producer.session.handle import BaseHandle
from producer.session.inflight import Inflight

_StreamId = tuple[int, ...]
_FALLBACKS = (4,), (5,)


class Standing:
    """The positions of the streams at one moment; its `turn` is one more each time."""

    def __init__(self, said: Mapping[bytes, bytes]) -> None:
        self.turn = int(said.get(b"turn", 0))
        #: By place, the ids of the first and the last entry; empty for an empty stream.
        self._spans: dict[int, list[_StreamId]] = {
            place: [tuple(map(int, one.split(b"-"))) for one in said.get(b"%d" % place, b"").split()]
            for place in range(1, 6)
        }

    def last(self, place: int) -> _StreamId | None:
        """The newest entry of a stream; None of an empty one."""
        return self._spans[place][1] if self._spans[place] else None

    def has_passed(self, place: int, mark: _StreamId | None) -> bool:
        """True if nothing of what was there is there any more, up to this entry."""
        span = self._spans[place]
        return mark is None or not span or span[0] > mark


class _Search:
    """One request, followed through the streams that it can be in."""

    def __init__(self, handle: BaseHandle) -> None:
        # An id that the caller chose may have got in earlier, at another level.
        self._stages = ((1, 2, 3) if handle.named else (handle.level,)), *_FALLBACKS
        self._passed = 0
        self._marks: list[_StreamId | None] | None = None
        self._turn: int | None = None

    def is_over(self, standing: Standing) -> bool:
        """True if it is in none of them any more; words from before it was looked for say nothing."""
        turn, self._turn = self._turn, standing.turn
        if turn is None or standing.turn < turn:  # the latter: of a server that was flushed, or a replica
            self._passed, self._marks = 0, None
            return False
        while self._passed < len(self._stages) and standing.turn > turn:
            places = self._stages[self._passed]
            if self._marks is None:
                self._marks = [standing.last(place) for place in places]
            if not all(map(standing.has_passed, places, self._marks)):
                break
            self._passed, self._marks = self._passed + 1, None
        return self._passed == len(self._stages)


class Losses:
    """Follows the requests that are overdue, and ends those that are lost."""

    def __init__(self, inflight: Inflight) -> None:
        self._inflight = inflight
        self._searches: dict[BaseHandle, _Search] = {}
        self._over: list[BaseHandle] = []

    def restart(self) -> None:
        """Begins anew: another server may answer now, and have more, or less, than the one before."""
        self._searches, self._over = {}, []

    def note(self, said: Any) -> bool:
        """Takes what workers said, names and values; returns whether requests without an answer may be over.

        A refusal says nothing.
        """
        try:
            standing = Standing(dict(zip(said[::2], said[1::2], strict=True)))
        except (TypeError, ValueError, LookupError):  # a map has slices for keys since Python 3.12
            return False
        self._searches = {one: self._searches.get(one) or _Search(one) for one in self._inflight.overdue}
        self._over = [one for one, search in self._searches.items() if search.is_over(standing)]
        return bool(self._over)

    def end_lost(self) -> None:
        """Ends those that are over and have no answer, now that the whole reply stream was read."""
        self._inflight.give_up(self._over, _lost)
        self._over = []


def _lost(request_id: str) -> RequestLost:
    return RequestLost(
        f"the server no longer has request {request_id}, and no answer to it is there: it was lost (a flush, "
        "a failover), or its answer was dropped unread (it expired, or too many waited); submit it again"
    )
