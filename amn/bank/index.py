"""The index of a large bank: half a million references in about a tenth of a millisecond (docs/bank.md).

Every reference is filed under two of K cells. A batch of predictions (B, 768) is searched in passes:

    q @ projection -> (B, d)   @ centroids -> (B, K)     the cells, best first
    the first `probes` cells:   4-bit codes, 48 bytes a reference  -> candidates by estimate
    the `rerank` best of them:  exact cosines with the mapped vectors -> best, second, id
    where the two rules would keep the answer, or nearly: `rerank_wide` candidates more, and as many of
    the cells up to `probes_wide`

Escalating is the safe side. So the second pass goes where a miss would do harm: a second best that was
not found makes a margin look wide. How wide both passes are is chosen when the bank is built
(agreement.py). A search is one call of compiled loops (search.py), or of NumPy and faiss where they
cannot run (index_arrays.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from amn.bank.files import BankManifest, Multiplicity
from amn.bank.index_arrays import ArraySearch
from amn.bank.neighbours import Bank, Neighbours, Vectors
from amn.bank.search import LoopSearch
from amn.bank.settings import Guard, IndexSettings


class CellBank(Bank):
    """A mapped bank with an index. One thread searches it.

    Attributes:
        guard: The thresholds in force.
        observer: Called with each batch of predictions and its answer; must be quick.
    """

    def __init__(
        self,
        vectors: Vectors,
        multiplicity: Multiplicity,
        manifest: BankManifest,
        search: ArraySearch | LoopSearch,
    ) -> None:
        super().__init__(vectors, multiplicity, manifest)
        self.settings = IndexSettings(**(manifest.index or {}))
        self.guard = Guard()
        self.observer: Callable[[Vectors, Neighbours], None] | None = None
        self._search = search

    def top2(self, predictions: Vectors) -> Neighbours:
        """The two best cosines found for each prediction (B, 768), float32, unit norm."""
        queries = np.ascontiguousarray(predictions, np.float32)
        best, second, ids, twice = self._search.top2(queries, self.settings, self.guard)
        found = Neighbours(best, second, ids, ~(twice & self.guard.doubtful(best, second)))
        if self.observer is not None:
            self.observer(queries, found)
        return found
