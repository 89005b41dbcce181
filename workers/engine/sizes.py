"""The size of a worker's reads, and its division among the levels of a queue.

A stream command takes the same number of entries from each stream, or a number from one stream. An
idle worker waits at all levels at once, a third of a micro-batch of each. Once a level gave all that it
was asked for there is a backlog, and the worker reads level by level, in one round trip:

- The highest level that may have more gets the micro-batch, the others what they needed last time.
- Each level is sure of a sixteenth of it, so that none ever starves.

So while high requests wait, a read holds at most two sixteenths of others, and each of the lower levels
moves at no less than a sixteenth of the worker's pace.

A read is bounded in bytes as well, and asks for less where the connection loses large answers. The low level
yields to the others beyond that (workers/engine/yielding.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from producer.keys import REQUEST
from producer.messages import PAYLOAD_BYTES_MAX
from producer.protocol.peek import contexts_in
from producer.transport.steps import Steps
from workers.engine.entry import Entry
from workers.engine.yielding import Yielding

#: Payload that a read should not exceed by much, of each level: one full message of contexts. A read of
#: four of them takes three times as long for each (it leaves every cache), and saves nothing.
READ_BYTES_MAX = 4 * 1024**2


class ReadSizes:
    """The entries that the next read asks of each level, learned from the reads before.

    Attributes:
        more: Whether the last read may have left something behind that is not to yield.
        heavy: Whether the last read holds a message that is larger than a single context's.
        lost: Reads whose answer was lost.
        lost_alone: Whether the last read was, although it asked for one entry of each level.
        usual: Whether the next read that waits may be as the first one: nothing is large, lost or low.
        yielding: How the last level yields to the others; None where it does not.
    """

    def __init__(self, batch_max: int, levels: int, yielding: Yielding | None = None) -> None:
        self._batch_max = batch_max
        self._waiting = max(1, batch_max // levels)
        self.more = self.heavy = self.lost_alone = False
        self.lost, self.usual = 0, True
        self.yielding = yielding
        self._sure = max(1, batch_max // 16)
        self._floors = [1] * levels
        self._wants = [batch_max] * levels
        self._steps = Steps(batch_max)
        self._largest_bytes = [0] * levels

    @property
    def narrowed(self) -> int:
        """Entries to which lost answers have narrowed the reads; 0 when they are not much narrower."""
        return self._steps.size if 4 * self._steps.size <= self._steps.size_max else 0

    @property
    def entries(self) -> int:
        """Entries of any level that are not too many."""
        return min(self._limits())

    def waiting(self, levels: int) -> int:
        """Entries of each of the first levels for a blocking read: together at most `batch_max`."""
        return min(self._waiting, *self._limits()[:levels])

    def counts(self) -> list[int]:
        """Entries of each level for a read of a backlog, together at most `batch_max`."""
        left = self._batch_max - sum(self._floors)
        counts = []
        for floor, want in zip(self._floors, self._wants, strict=True):
            extra = max(0, min(want - floor, left))
            counts.append(floor + extra)
            left -= extra
        counts[0] += max(0, left)
        return [min(count, limit) for count, limit in zip(counts, self._limits(), strict=True)]

    def beside(self) -> list[int]:
        """Entries of each level for a read of live traffic, of which there is no backlog, and of low work."""
        last = len(self._floors) - 1
        return [self.waiting(last)] * last + [self.waiting(last + 1)]

    def took(self, asked: Sequence[int], got: Sequence[int], entries: Sequence[Entry] = ()) -> None:
        """Learns from a read of entries, level by level. A level that gave nothing keeps one entry, enough to
        notice it; one that was not asked keeps all."""
        lengths = [len(entry.fields.get(REQUEST, b"")) for entry in entries]
        self.more = self.lost_alone = False
        self.heavy = max(lengths, default=0) > PAYLOAD_BYTES_MAX
        last, first = len(got) - 1, 0
        if self.yielding is not None and any(got[:last]):
            self.yielding.note_live()
        for level, count in enumerate(got):
            if count or asked[level]:
                self.expect(level, max(lengths[first : first + count], default=0))
            if self.yielding is not None and level == last and (some := entries[first : first + count]):
                self.yielding.expect(max(contexts_in(entry.fields.get(REQUEST, b"")) for entry in some))
            first += count
            if not asked[level]:
                continue
            full = count >= asked[level]
            floor = self._floors[level] = self._sure if count else 1
            self._wants[level] = self._batch_max if full else count + floor
            if self.yielding is not None and level == last:
                self.yielding.waits = full
                full = full and not self.yielding.live
            self.more |= full
        if self.heavy or self._steps.size < self._batch_max:
            self._steps.note_came()
        narrow = self._steps.size < self._batch_max or max(self._largest_bytes) > PAYLOAD_BYTES_MAX
        self.usual = not (narrow or (self.yielding is not None and self.yielding.expected))

    def expect(self, level: int, largest_bytes: int) -> None:
        """The next entries of a level may be so large. Large ones seldom come alone: half of what was seen is
        expected again, so that it is forgotten over several reads."""
        self._largest_bytes[level] = max(largest_bytes, self._largest_bytes[level] // 2)
        self.usual = self.usual and largest_bytes <= PAYLOAD_BYTES_MAX

    def note_lost(self) -> None:
        """The connection broke while an answer was due."""
        self.lost, self.usual = self.lost + 1, False
        limits = self._limits()
        self.lost_alone = max(limits) == 1
        self._steps.note_lost(min(limits))

    def _limits(self) -> list[int]:
        """More entries than these are asked of no level; at least one."""
        limits = [
            max(1, READ_BYTES_MAX // largest) if largest > PAYLOAD_BYTES_MAX else self._batch_max
            for largest in self._largest_bytes
        ]
        if self.yielding is not None:
            limits[-1] = min(limits[-1], self.yielding.entries_max(self._sure))
        return [min(limit, self._steps.size) for limit in limits]
