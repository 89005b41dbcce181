"""Exact search: of a small bank for every request, of a large one as its oracle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from amn.bank.files import BankManifest, Multiplicity
from amn.bank.neighbours import Bank, Neighbours, Vectors
from amn.kernel import bindings as kernel

#: Rows of a mapped bank that are compared at a time: 25 MB.
_SLICE_ROWS = 8192


class ReferenceBank(Bank):
    """Exact nearest neighbours among the bank's vectors."""

    def __init__(self, vectors: Vectors, multiplicity: Multiplicity, manifest: BankManifest) -> None:
        super().__init__(vectors, multiplicity, manifest)
        self._loops = kernel.References(vectors) if kernel.READY else None

    def top2(self, predictions: Vectors) -> Neighbours:
        """The two best cosines of each prediction (B, 768), float32, unit norm."""
        if self._loops is None:
            return exact_top2(self.vectors, predictions)
        best, second, ids = self._loops.top2(predictions)
        return Neighbours(best, second, ids, np.ones(len(ids), dtype=np.bool_))


def exact_top2(vectors: Vectors, predictions: Vectors) -> Neighbours:
    """Exact neighbours by a pass over all vectors, in slices.

    Args:
        vectors: Shape (N, 768), float32, may be mapped.
        predictions: Shape (B, 768), float32, unit norm.
    """
    count = len(predictions)
    best = np.full(count, -2, dtype=np.float32)
    second, ids = best.copy(), np.zeros(count, dtype=np.intp)
    for start in range(0, len(vectors), _SLICE_ROWS):
        first, next_, index = _two_best(predictions @ vectors[start : start + _SLICE_ROWS].T)
        second = np.maximum(np.maximum(second, next_), np.minimum(best, first))
        ids = np.where(first > best, index + start, ids)
        best = np.maximum(best, first)
    return Neighbours(best, second, ids, np.ones(count, dtype=np.bool_))


def _two_best(scores: Vectors) -> tuple[Vectors, Vectors, NDArray[np.intp]]:
    """Best, second best and column of the best of each row; overwrites `scores` (B, N)."""
    rows = np.arange(scores.shape[0])
    # Two passes of argmax cost a sixth of a partial sort at N = 2,048.
    index = scores.argmax(axis=1)
    best = scores[rows, index]
    scores[rows, index] = -2.0
    return best, scores.max(axis=1), index
