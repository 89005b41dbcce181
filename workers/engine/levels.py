"""How the levels of a queue share a worker's reads.

A stream command takes the same number of entries from each stream, or a number from one stream. An
idle worker waits at all levels at once, a third of a batch of each. Once a level gave all that it was
asked for there is a backlog, and the worker reads level by level, in one round trip:

- The highest level that may have more gets the batch, the others what they needed last time.
- Each level is sure of a sixteenth of the batch, so that none ever starves.

So while high requests wait, a batch holds at most two sixteenths of others, and each of the lower
levels moves at no less than a sixteenth of the worker's pace.
"""

from __future__ import annotations

from collections.abc import Sequence


class Shares:
    """What each level may take of the next read.

    Attributes:
        more: Whether the last read may have left something behind.
    """

    def __init__(self, batch_max: int, levels: int) -> None:
        self.batch_max = batch_max
        self.levels = levels
        self.more = False
        self._sure = max(1, batch_max // 16)
        self._floors = [1] * levels
        self._wants = [batch_max] * levels

    @property
    def waiting(self) -> int:
        """Entries of each level for a blocking read: together at most a batch."""
        return max(1, self.batch_max // self.levels)

    def counts(self) -> list[int]:
        """Entries of each level for a read of a backlog, together a batch."""
        left = self.batch_max - sum(self._floors)
        counts = []
        for floor, want in zip(self._floors, self._wants, strict=True):
            extra = max(0, min(want - floor, left))
            counts.append(floor + extra)
            left -= extra
        counts[0] += max(0, left)
        return counts

    def took(self, asked: Sequence[int], got: Sequence[int]) -> None:
        """Learns from a read. A level that gave nothing keeps one place, enough to notice it."""
        self.more = any(g >= a for g, a in zip(got, asked, strict=True))
        self._floors = [self._sure if g else 1 for g in got]
        self._wants = [
            self.batch_max if g >= a else g + floor
            for g, a, floor in zip(got, asked, self._floors, strict=True)
        ]
