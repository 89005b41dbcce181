"""The size of a worker's reads, and its division among the levels of a queue.

A stream command takes the same number of entries from each stream, or a number from one stream. An
idle worker waits at all levels at once, a third of a micro-batch of each. Once a level gave all that it
was asked for there is a backlog, and the worker reads level by level, in one round trip:

- The highest level that may have more gets the micro-batch, the others what they needed last time.
- Each level is sure of a sixteenth of it, so that none ever starves.

So while high requests wait, a read holds at most two sixteenths of others, and each of the lower levels
moves at no less than a sixteenth of the worker's pace.

A read is bounded in bytes as well, and asks for less where the connection loses large answers.
"""

from __future__ import annotations

from collections.abc import Sequence

from producer.messages import PAYLOAD_BYTES_MAX
from producer.transport.steps import Steps

#: Payload that a read should not exceed by much, of each level: one full message of contexts. A read of
#: four of them takes three times as long for each (it leaves every cache), and saves nothing.
READ_BYTES_MAX = 4 * 1024**2


class ReadSizes:
    """The entries that the next read asks of each level, learned from the reads before.

    Attributes:
        waiting: Entries of each level for a blocking read: together at most `batch_max`.
        entries: More than these are asked of no level; at least one.
        more: Whether the last read may have left something behind.
        heavy: Whether the last read holds a message that is larger than a single context's.
        lost: Reads whose answer was lost.
        lost_alone: Whether the last read was, although it asked for one entry of each level.
    """

    def __init__(self, batch_max: int, levels: int) -> None:
        self.entries = self._batch_max = batch_max
        self.waiting = max(1, batch_max // levels)
        self.more = self.heavy = self.lost_alone = False
        self.lost = 0
        self._sure = max(1, batch_max // 16)
        self._floors = [1] * levels
        self._wants = [batch_max] * levels
        self._steps = Steps(batch_max)
        self._largest_bytes = 0

    @property
    def narrowed(self) -> int:
        """Entries to which lost answers have narrowed the reads; 0 when they are not much narrower."""
        return self._steps.size if 4 * self._steps.size <= self._steps.size_max else 0

    def counts(self) -> list[int]:
        """Entries of each level for a read of a backlog, together at most `batch_max`."""
        left = self._batch_max - sum(self._floors)
        counts = []
        for floor, want in zip(self._floors, self._wants, strict=True):
            extra = max(0, min(want - floor, left))
            counts.append(floor + extra)
            left -= extra
        counts[0] += max(0, left)
        return [min(count, self.entries) for count in counts]

    def took(self, asked: Sequence[int], got: Sequence[int], lengths: Sequence[int] = ()) -> None:
        """Learns from a read; `lengths` are bytes of its entries. A level that gave nothing keeps one
        entry, enough to notice it."""
        self.more = self.lost_alone = False
        largest_bytes = max(lengths, default=0)
        self.heavy = largest_bytes > PAYLOAD_BYTES_MAX
        for level, count in enumerate(got):
            full = count >= asked[level]
            floor = self._floors[level] = self._sure if count else 1
            self._wants[level] = self._batch_max if full else count + floor
            self.more |= full
        if self.heavy or self.entries < self._batch_max:
            self._steps.note_came()
            self.expect(largest_bytes)

    def expect(self, largest_bytes: int) -> None:
        """The next entries may be so large. Large ones seldom come alone: half of what was seen is
        expected again, so that it is forgotten over several reads."""
        self._largest_bytes = largest_bytes = max(largest_bytes, self._largest_bytes // 2)
        self.entries = self._steps.size
        if largest_bytes > PAYLOAD_BYTES_MAX:
            self.entries = max(1, min(READ_BYTES_MAX // largest_bytes, self.entries))

    def note_lost(self) -> None:
        """The connection broke while an answer was due."""
        self.lost += 1
        self.lost_alone = self.entries == 1
        self._steps.note_lost(self.entries)
        self.entries = min(self.entries, self._steps.size)
