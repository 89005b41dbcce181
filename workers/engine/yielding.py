"""Low work yields to live traffic, which is whatever came at a level above it.

While there is live traffic, low work is read in small portions, and only while it has had less than its share
of the worker's time; and after each few rows of it the worker looks whether a live request came, and serves
that first (workers/engine/loop.py). Without live traffic nothing of this holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from producer.keys import REQUEST
from producer.protocol.peek import contexts_in
from workers.engine.entry import BULK_PLACE, Entry

_T = TypeVar("_T")
#: Live traffic counts for so long: a request now and then should not slow a file down.
LIVE_S = 0.5
#: Of a worker's time, beside live traffic.
SHARE = 1 / 4
#: Rows of low work that a live request may find before it.
PIECE_ROWS = 32
#: Rows of a portion, at least one message: beside live traffic, and without.
BESIDE_ROWS_MAX, ROWS_MAX = 64, 256
#: Low work that may go into one micro-batch with live traffic.
JOINED_ROWS_MAX = 16
#: How large messages are is remembered for so long.
_REMEMBERED_S = 5.0
#: Time that low work may be behind and make up for; a wait for its turn may last 100 ms longer than asked, as
#: the server looks at its clock ten times a second.
_CREDIT_S_MAX = 0.1 * SHARE
#: A step that took longer (of a process that was stopped, say) counts as so long.
_STEP_S_MAX = 0.1


class Yielding:
    """The turns of low work in one worker.

    Attributes:
        waits: Whether the last look at the low level found all that it asked for, so that more may be there.
        kept: Low entries that came with live ones, and are next.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.waits = False
        self.kept: list[Entry] = []
        self._clock = clock
        self._live_until_s = self._counted_at_s = self._started_at_s = self._seen_at_s = 0.0
        self._credit_s = _CREDIT_S_MAX
        self._rows = 1

    @property
    def live(self) -> bool:
        """True while there is live traffic."""
        return self._clock() < self._live_until_s

    @property
    def interruptible(self) -> bool:
        """True while the worker has low work and there is live traffic."""
        return bool(self._started_at_s) and self.live

    @property
    def at_work(self) -> bool:
        """True while the worker has low work, or has kept some."""
        return bool(self._started_at_s or self.kept)

    @property
    def expected(self) -> bool:
        """True if low work waits, or some of many rows came lately."""
        return self.waits or self._rows > 1

    def note_live(self, at_s: float | None = None) -> None:
        """A request of a higher level was read, now or at this time."""
        self._live_until_s = max(self._live_until_s, (self._clock() if at_s is None else at_s) + LIVE_S)

    def expect(self, rows: int) -> None:
        """The next messages may have so many rows."""
        self._rows, self._seen_at_s = max(1, rows, self._rows // 2), self._clock()

    def entries_max(self, sure: int) -> int:
        """Entries of the low level for one read; so many single contexts it is sure of."""
        if self._rows > 1 and self._clock() - self._seen_at_s > _REMEMBERED_S:
            self._rows = 1
        return max(1, max(BESIDE_ROWS_MAX if self.live else ROWS_MAX, sure) // self._rows)

    def first(self, entries: list[Entry]) -> list[Entry]:
        """The entries that are next; much low work that came with others is kept."""
        low = [entry for entry in entries if entry.place == BULK_PLACE]
        if low and len(low) < len(entries):
            if sum(contexts_in(entry.fields.get(REQUEST, b"")) for entry in low) > JOINED_ROWS_MAX:
                self.kept = low
                return [entry for entry in entries if entry.place != BULK_PLACE]
        elif low:
            self._started_at_s = self._clock()
        return entries

    def stop(self) -> None:
        """The worker is done with what it had."""
        if self._started_at_s:
            now_s = self._clock()
            if now_s < self._live_until_s:
                self._earn(now_s)
                self._credit_s -= min(now_s - self._started_at_s, _STEP_S_MAX)
            self._started_at_s = 0.0

    def pause_ms(self) -> int:
        """Milliseconds until low work has its turn; 0 when it has one."""
        now_s = self._clock()
        if now_s >= self._live_until_s:
            return 0
        self._earn(now_s)
        if self._credit_s > 0:
            return 0
        return int(1000 * min(-self._credit_s / SHARE, self._live_until_s - now_s)) + 1

    def _earn(self, now_s: float) -> None:
        earned_s = (now_s - self._counted_at_s) * SHARE
        self._credit_s, self._counted_at_s = min(self._credit_s + earned_s, _CREDIT_S_MAX), now_s


def piecewise(compute: Callable[..., _T], between: Callable[[], None]) -> Callable[..., _T]:
    """Gives a function of columns that computes some rows after the others, and calls `between` after each.

    What `compute` gives is a column, or a named tuple of columns. A given column of None is left
    out; only the last ones may be None.
    """

    def computed(*columns: NDArray[np.generic] | None) -> _T:
        found: list[Any] = []
        given = [column for column in columns if column is not None]
        for first in range(0, len(given[0]), PIECE_ROWS):
            found.append(compute(*(column[first : first + PIECE_ROWS] for column in given)))
            between()
        if isinstance(found[0], tuple):
            return cast(_T, type(found[0])(*map(np.concatenate, zip(*found, strict=True))))
        return cast(_T, np.concatenate(found))

    return computed
