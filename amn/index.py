"""The index of a large bank: half a million references in about a fifth of a millisecond (docs/bank.md).

Every reference is filed under two of K cells. A batch of predictions (B, 768) is searched in passes:

    q @ projection -> (B, d)   @ centroids -> (B, K)     the cells, best first
    the first `probes` cells:   4-bit codes, 48 bytes a reference  -> candidates by estimate
    the `rerank` best of them:  exact cosines with the mapped vectors -> best, second, id
    where the two rules would keep the answer, or nearly: `rerank_wide` candidates more, and as many of
    the cells up to `probes_wide`

Escalating is the safe side. So the second pass goes where a miss would do harm: a second best that was
not found makes a margin look wide. How wide both passes are is chosen when the bank is built
(amn/index_tune.py).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from amn.errors import CheckpointError
from amn.index_cells import Cells
from amn.policy import TOP1, EscalationPolicy
from amn.reference import Neighbours
from amn.reference_files import CELLS, CODES, BankManifest, Multiplicity

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]
Rows = NDArray[np.bool_]

#: No cosine is below the one, no margin below the other.
NO_CONFIDENCE, NO_MARGIN = -2.0, 0.0
#: Vectors that a cell should have at least; only small banks come near it.
_LEAST_A_CELL = 16
_FEW = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """How a bank is indexed and searched; stands in its manifest.

    Attributes:
        cells: K.    dimensions: d, of the projection.    groups: 4-bit codes a reference.
        probes, rerank: Cells of the first pass, and candidates whose cosine is computed for all.
        probes_wide, rerank_wide: Cells after both passes, and candidates that the second one adds of
            either's cells.
        within: Cells that score this much less than the nearest one are passed over.
        seed: Of the samples that the index is fitted on.
    """

    cells: int = 1024
    dimensions: int = 192
    groups: int = 96
    probes: int = 20
    probes_wide: int = 60
    rerank: int = 80
    rerank_wide: int = 160
    within: float = 0.15
    seed: int = 0

    def fitted(self, count: int) -> Self:
        """For a bank of so many vectors: no more cells than it can fill, and no more searched than are."""
        cells = min(self.cells, max(1, count // _LEAST_A_CELL))
        probes, probes_wide = min(self.probes, cells), min(self.probes_wide, cells)
        return replace(self, cells=cells, probes=probes, probes_wide=probes_wide)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """The rules that a search must not get wrong.

    Attributes:
        confidence, margin: An answer is kept from these cosines on; `NO_CONFIDENCE` and `NO_MARGIN`
            where there is no such rule.
        reach: Best cosines this little below `confidence` are looked at twice.
        doubt: After the second pass, scores this near to a threshold are not certain.
    """

    confidence: float = 0.70
    margin: float = 0.02
    reach: float = 0.01
    doubt: float = 0.002

    @classmethod
    def of(cls, policy: EscalationPolicy) -> Self:
        """The thresholds of a policy's rules, as far as they look at the two best cosines."""
        rule = policy.confidence
        return cls(
            confidence=rule.below if rule is not None and rule.method == TOP1 else NO_CONFIDENCE,
            margin=policy.margin.below if policy.margin is not None else NO_MARGIN,
        )

    def keeps(self, best: Vectors, second: Vectors) -> Rows:
        """Where no rule fires, (B,)."""
        kept: Rows = (best >= self.confidence) & (best - second >= self.margin)
        return kept

    def undecided(self, best: Vectors, second: Vectors) -> Rows:
        """Where a miss would matter, (B,)."""
        near: Rows = (best >= self.confidence - self.reach) & (best < self.confidence)
        if self.margin <= NO_MARGIN:
            return near  # a best cosine that was found is proof enough
        return near | self.keeps(best, second)

    def doubtful(self, best: Vectors, second: Vectors) -> Rows:
        """Where another reference would easily change the decision, (B,)."""
        doubtful: Rows = np.abs(best - self.confidence) < self.doubt
        if self.margin > NO_MARGIN:
            doubtful |= (best >= self.confidence) & (np.abs(best - second - self.margin) < self.doubt)
        return doubtful


class CellBank:
    """A mapped bank with an index; attributes as `amn.reference.Bank`. One thread searches it.

    Attributes:
        guard: The thresholds in force.
        observer: Called with each batch of predictions and its answer; must be quick.
    """

    def __init__(
        self, vectors: Vectors, multiplicity: Multiplicity, manifest: BankManifest, cells: Cells, codes: Any
    ) -> None:
        import faiss

        self.manifest, self.vectors, self.multiplicity = manifest, vectors, multiplicity
        self.settings = IndexSettings(**(manifest.index or {}))
        self.guard = Guard()
        self.observer: Callable[[Vectors, Neighbours], None] | None = None
        self._faiss: Any = faiss
        self._cells, self._codes = cells, codes
        self._address = faiss.cast_integer_to_float_ptr(vectors.ctypes.data)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def bank_id(self) -> str:
        """Stamped on every answer."""
        return self.manifest.bank_id

    def top2(self, predictions: Vectors) -> Neighbours:
        """The two best cosines found for each prediction.

        Args:
            predictions: Shape (B, 768), float32, unit norm.
        """
        self._faiss.omp_set_num_threads(1)  # the number is the calling thread's own
        settings, guard = self.settings, self.guard
        queries = np.ascontiguousarray(predictions)
        flat, nearness = self._cells.score(queries)
        points = self._cells.spread(flat)
        probes, few = settings.probes, len(queries) <= _FEW
        # A few rows are sorted once for both passes; of many, only those that need it a second time.
        cells = self._cells.nearest(nearness, settings.probes_wide if few else probes, settings.within)
        candidates = self._scan(points, cells, (0, probes), settings.rerank + settings.rerank_wide)
        scores, ids = self._refine(queries, candidates[:, : settings.rerank])
        certain = np.ones(len(queries), dtype=np.bool_)
        again = np.flatnonzero(guard.undecided(scores[:, 0], scores[:, 1]))
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
            certain[again] = ~guard.doubtful(scores[again, 0], scores[again, 1])
        found = Neighbours(scores[:, 0], scores[:, 1], ids[:, 0], certain)
        if self.observer is not None:
            self.observer(queries, found)
        return found

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


def open_index(
    folder: Path, manifest: BankManifest, stored: NDArray[np.floating], multiplicity: Multiplicity
) -> CellBank:
    """A bank whose files hold, ready to search. The vectors stay in the file: all workers share them.

    Raises:
        CheckpointError: faiss is not installed, or the index is of another version.
    """
    faiss = require_faiss(f"reference bank {folder}")
    if stored.dtype != np.float32:
        raise CheckpointError(f"reference bank {folder}: an indexed bank holds float32, not {stored.dtype}")
    if isinstance(stored, np.memmap) and hasattr(mmap, "MADV_WILLNEED"):
        stored._mmap.madvise(mmap.MADV_WILLNEED)  # type: ignore[attr-defined]
    try:
        with np.load(folder / CELLS, allow_pickle=False) as arrays:
            cells = Cells(**arrays)
        codes = faiss.read_index(str(folder / CODES))
        return CellBank(np.asarray(stored), multiplicity, manifest, cells, codes)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"reference bank {folder}: its index cannot be read: {error}; build it again"
        ) from error


def require_faiss(what: str) -> Any:
    """The package faiss, with one thread.

    Raises:
        CheckpointError: It is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise CheckpointError(
            f"{what} has an approximate index, which needs faiss: pip install 'amn-queue[bank]', or build "
            "the bank with --index exact"
        ) from error
    faiss.omp_set_num_threads(1)
    return faiss
