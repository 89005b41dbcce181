"""How much one read asks for: at most a batch, bounded in bytes, and less where the way loses answers."""

from __future__ import annotations

from producer.protocol.wire import PAYLOAD_BYTES_MAX
from producer.transport.steps import Steps

#: Payload that a read should not exceed by much, of each level: one full batch of contexts. A read of
#: four of them takes three times as long for each (it leaves every cache), and saves nothing.
READ_BYTES_MAX = 4 * 1024**2


class Room:
    """The number of entries that the next read may ask for, of each level.

    Attributes:
        lost: Reads whose answer was lost.
        lost_alone: Whether the last read was, although it asked for one entry of each level.
    """

    def __init__(self, entries_max: int) -> None:
        self.lost = 0
        self.lost_alone = False
        self._fitting, self._steps = entries_max, Steps(entries_max)
        self._largest_bytes = 0

    @property
    def entries(self) -> int:
        """At least one."""
        return min(self._fitting, self._steps.size)

    @property
    def narrowed(self) -> int:
        """To how many entries lost answers have brought the reads, for whoever looks; 0 for not much."""
        return self._steps.size if 4 * self._steps.size <= self._steps.size_max else 0

    def expect(self, largest_bytes: int) -> None:
        """The next entries may be so large. Large ones seldom come alone: half of what was seen is
        expected again, so that it is forgotten over several reads."""
        self._largest_bytes = largest_bytes = max(largest_bytes, self._largest_bytes // 2)
        entries_max = self._steps.size_max
        fitting = READ_BYTES_MAX // largest_bytes if largest_bytes > PAYLOAD_BYTES_MAX else entries_max
        self._fitting = max(1, min(fitting, entries_max))

    def note_came(self) -> None:
        """An answer came."""
        self.lost_alone = False
        self._steps.note_came()

    def note_lost(self) -> None:
        """The connection broke while an answer was due."""
        self.lost += 1
        self.lost_alone = self.entries == 1
        self._steps.note_lost(self.entries)
