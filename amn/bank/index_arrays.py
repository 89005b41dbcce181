"""The search of a large bank in NumPy and faiss, where the compiled loops (search.py) cannot run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.bank.index_cells import Cells
from amn.bank.settings import Guard, IndexSettings

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]
Rows = NDArray[np.bool_]

_FEW = 4


class ArraySearch:
    """Both passes of a search.

    Args:
        faiss: The package.
        codes: An `IndexIVFPQFastScan`.
        vectors: Shape (N, 768), float32.
    """

    def __init__(self, faiss: Any, cells: Cells, codes: Any, vectors: Vectors) -> None:
        self._faiss, self._cells, self._codes = faiss, cells, codes
        self._vectors = vectors  # lives as long as its address
        self._address = faiss.cast_integer_to_float_ptr(vectors.ctypes.data)

    def top2(
        self, queries: Vectors, settings: IndexSettings, guard: Guard
    ) -> tuple[Vectors, Vectors, Ids, Rows]:
        """(B, 768) -> best and second best cosine found, the best one's row, and whether there was a
        second pass.
        """
        self._faiss.omp_set_num_threads(1)  # the number is the calling thread's own
        flat, nearness = self._cells.score(queries)
        points = self._cells.spread(flat)
        probes, few = settings.probes, len(queries) <= _FEW
        # A few rows are sorted once for both passes; of many, only those that need it a second time.
        cells = self._cells.nearest(nearness, settings.probes_wide if few else probes, settings.within)
        candidates = self._scan(points, cells, (0, probes), settings.rerank + settings.rerank_wide)
        scores, ids = self._refine(queries, candidates[:, : settings.rerank])
        twice = guard.undecided(scores[:, 0], scores[:, 1])
        again = np.flatnonzero(twice)
        if len(again):
            parts = [ids[again], candidates[again, settings.rerank :]]
            if probes < settings.probes_wide:
                if few:
                    cells = cells[0][again], cells[1][again]
                else:
                    cells = self._cells.nearest(nearness[again], settings.probes_wide, settings.within)
                rest = probes, settings.probes_wide
                parts.append(self._scan(points[again], cells, rest, settings.rerank_wide))
            scores[again], ids[again] = self._refine(queries[again], np.hstack(parts))
        return scores[:, 0], scores[:, 1], ids[:, 0], twice

    def _scan(self, points: Vectors, cells: tuple[Ids, Vectors], places: tuple[int, int], count: int) -> Ids:
        """The `count` best by their codes, (B, count), in the cells of these places; -1 where there are
        fewer."""
        numbers, inner = (np.ascontiguousarray(part[:, slice(*places)]) for part in cells)
        self._codes.nprobe = numbers.shape[1]
        _, ids = self._codes.search_preassigned(points, count, numbers, inner)
        found: Ids = ids
        return found

    def _refine(self, queries: Vectors, ids: Ids) -> tuple[Vectors, Ids]:
        """Exact cosines of candidates: the two best (B, 2), and which ones, (B, 2)."""
        ids = np.ascontiguousarray(ids)
        scores = np.empty(ids.shape, dtype=np.float32)
        pointer = self._faiss.swig_ptr
        # An id of -1 scores minus infinity.
        self._faiss.fvec_inner_products_by_idx(
            pointer(scores), pointer(queries), self._address, pointer(ids), 768, *ids.shape
        )
        rows = np.arange(len(ids))
        found, which = np.empty((len(ids), 2), np.float32), np.empty((len(ids), 2), np.int64)
        for i in (0, 1):
            place = scores.argmax(axis=1)
            found[:, i], which[:, i] = scores[rows, place], ids[rows, place]
            if i == 0:
                scores[ids == which[:, :1]] = -2  # twice, where it is filed under two of the cells
        return found, which
