"""The size of the pieces to move at once, over a connection that may lose large ones."""

from __future__ import annotations

#: So many pieces must come, where some were lost, before a larger one is tried again.
_STEADY = 16


class Steps:
    """Each piece that was lost halves the next, down to a single item.

    They grow back at once to half of what was lost first, which is what an outage needs, and from there
    on slowly, which is what a link needs that cuts large answers, or a server with an output limit.

    Attributes:
        size: Items of the next piece.    size_max: Where nothing is lost.
    """

    __slots__ = ("_came", "_quick_to", "size", "size_max")

    def __init__(self, size_max: int) -> None:
        self.size = self.size_max = self._quick_to = size_max
        self._came = 1

    def note_came(self) -> None:
        """A piece came through."""
        self._came += 1
        if self.size < self._quick_to:
            self.size = min(2 * self.size, self._quick_to)
        elif self.size < self.size_max and self._came > _STEADY:
            self.size, self._came = min(2 * self.size, self.size_max), 1
            self._quick_to = self.size

    def note_lost(self, items: int) -> None:
        """The connection broke over a piece of up to so many items."""
        self.size = max(1, items // 2)
        if self._came:  # else it is the same loss still
            self._quick_to, self._came = self.size, 0
