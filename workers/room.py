"""How much one read asks for: at most a batch, bounded in bytes, and less where the link loses answers."""

from __future__ import annotations

from producer.wire import PAYLOAD_BYTES_MAX

#: Payload that a read should not exceed by much, of each level: one full batch of contexts. A read of
#: four of them takes three times as long for each (it leaves every cache), and saves nothing.
READ_BYTES_MAX = 4 * 1024**2
#: After so many reads whose answers came, the next ones may be twice as large again.
_STEADY_READS = 16


class Room:
    """The number of entries that the next read may ask for, of each level.

    A link that cuts large answers, or a server that closes connections over its output limit, lets
    small answers through: each read that was lost halves the next one, down to a single entry.

    Attributes:
        lost: Reads whose answer was lost.
        lost_alone: Whether the last read was, although it asked for one entry of each level.
    """

    def __init__(self, entries_max: int) -> None:
        self.lost = 0
        self.lost_alone = False
        self._entries_max = self._fitting = self._passing = entries_max
        self._largest_bytes = 0
        self._came = 0

    @property
    def entries(self) -> int:
        """At least one."""
        return min(self._fitting, self._passing)

    @property
    def narrowed(self) -> int:
        """To how many entries lost answers have brought the reads, for whoever looks; 0 for not much."""
        return self._passing if 4 * self._passing <= self._entries_max else 0

    def expect(self, largest_bytes: int) -> None:
        """The next entries may be so large. Large ones seldom come alone: half of what was seen is
        expected again, so that it is forgotten over several reads."""
        self._largest_bytes = largest_bytes = max(largest_bytes, self._largest_bytes // 2)
        fitting = READ_BYTES_MAX // largest_bytes if largest_bytes > PAYLOAD_BYTES_MAX else self._entries_max
        self._fitting = max(1, min(fitting, self._entries_max))

    def note_came(self) -> None:
        """An answer came."""
        self._came += 1
        self.lost_alone = False
        if self._passing < self._entries_max and self._came >= _STEADY_READS:
            self._passing, self._came = min(2 * self._passing, self._entries_max), 0

    def note_lost(self) -> None:
        """The connection broke while an answer was due."""
        self.lost += 1
        self.lost_alone = self.entries == 1
        self._passing, self._came = max(1, self.entries // 2), 0
