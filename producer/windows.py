"""Contexts that slide over documents: five vectors each, of which neighbours share four."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from producer.messages import CONTEXT_VECTORS

_STEPS = np.arange(1 - CONTEXT_VECTORS, 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Windows:
    """Contexts over rows of vectors, each vector once: a fifth of the bytes of the contexts themselves.

    Context i is `vectors[ends[i] - 4 : ends[i] + 1]`. A batch may be given as these or as an array.

    Attributes:
        vectors: Shape (m, 768), float32 or float16.
        ends: Shape (n,), integers: the rows of the newest vectors, rising, from 4 to m - 1.
        checked: Whether the vectors are known to keep the contract; then they are not looked at again
            before they are sent. Workers look at all of them.
    """

    vectors: NDArray[np.floating]
    ends: NDArray[np.integer]
    checked: bool = False

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def rows(self) -> NDArray[np.integer]:
        """Shape (n, 5): the rows of each context's vectors."""
        return self.ends.astype(np.intp)[:, None] + _STEPS

    def contexts(self) -> NDArray[np.floating]:
        """A copy of shape (n, 5, 768)."""
        found: NDArray[np.floating] = self.vectors[self.rows]
        return found

    def part(self, which: slice | NDArray[np.integer]) -> Windows:
        """Some of the contexts, in order, with the vectors that they hold."""
        ends = self.ends[which].astype(np.intp)
        if not len(ends):
            return Windows(vectors=self.vectors[:0], ends=ends, checked=self.checked)
        first = ends[0] + _STEPS[0]
        vectors, ends = self.vectors[first : ends[-1] + 1], ends - first
        used = np.zeros(len(vectors), bool)
        used[ends[:, None] + _STEPS] = True
        if not used.all():
            vectors, ends = vectors[used], (np.cumsum(used) - 1)[ends]
        return Windows(vectors=vectors, ends=ends, checked=self.checked)
