"""Live answers of an approximate bank, compared with an exact search in the background.

`offer` runs in the thread that answers: it draws a few of the requests, uniformly among all since the
last turn (a reservoir), and copies them. `turn` runs in another thread, whenever its owner likes: one
pass over the mapped vectors for all that was drawn.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amn.index import CellBank
from amn.reference import Neighbours, exact_top2

Vectors = NDArray[np.float32]


class Rechecked(NamedTuple):
    """What one turn found.

    Attributes:
        checked: Requests compared.
        agreed: The two rules decide as an exact search would have them decide.
        unsafe: Kept, where an exact search would have escalated.
    """

    checked: int
    agreed: int
    unsafe: int


class Recheck:
    """A reservoir of requests, and their comparison.

    Args:
        capacity: Requests a turn. The pass costs about 15 ms of one core for each, at half a million
            references.
        seed: Of the draw.
    """

    def __init__(self, bank: CellBank, *, capacity: int = 64, seed: int | None = None) -> None:
        self._bank = bank
        self._random = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._queries = np.empty((capacity, 768), dtype=np.float32)
        self._scores = np.empty((capacity, 2), dtype=np.float32)
        self._seen = 0

    def offer(self, queries: Vectors, found: Neighbours) -> None:
        """Takes a batch into account, (B, 768) and its answer."""
        capacity, count = len(self._queries), len(queries)
        with self._lock:
            # Request number n takes one of the places with probability capacity / n.
            numbers = np.arange(self._seen, self._seen + count)
            places = np.where(numbers < capacity, numbers, self._random.integers(0, numbers + 1))
            self._seen += count
            for row in np.flatnonzero(places < capacity):
                self._queries[places[row]] = queries[row]
                self._scores[places[row]] = found.best[row], found.second[row]

    def turn(self) -> Rechecked:
        """Compares what was drawn since the last turn."""
        with self._lock:
            count = min(self._seen, len(self._queries))
            queries, scores = self._queries[:count].copy(), self._scores[:count].copy()
            self._seen = 0
        if not count:
            return Rechecked(0, 0, 0)
        exact = exact_top2(self._bank.vectors, queries)
        guard = self._bank.guard
        ours, true = guard.keeps(scores[:, 0], scores[:, 1]), guard.keeps(exact.best, exact.second)
        return Rechecked(count, int((ours == true).sum()), int((ours & ~true).sum()))
