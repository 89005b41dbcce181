"""The index of a large bank: half a million references in about a tenth of a millisecond (docs/bank.md).

Every reference is filed under two of K cells. A batch of predictions (B, 768) is searched in passes:

    q @ projection -> (B, d)   @ centroids -> (B, K)     the cells, best first
    the first `probes` cells:   4-bit codes, 48 bytes a reference  -> candidates by estimate
    the `rerank` best of them:  exact cosines with the mapped vectors -> best, second, id
    where the two rules would keep the answer, or nearly: `rerank_wide` candidates more, and as many of
    the cells up to `probes_wide`

Escalating is the safe side. So the second pass goes where a miss would do harm: a second best that was
not found makes a margin look wide. How wide both passes are is chosen when the bank is built
(index_tune.py). A search is one call of compiled loops (index_loops.py), or NumPy and faiss where they
cannot run (index_arrays.py).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.bank.exact import Neighbours
from amn.bank.files import CELLS, CODES, BankManifest, Multiplicity
from amn.bank.index_arrays import ArraySearch
from amn.bank.index_cells import Cells
from amn.bank.index_loops import LoopSearch
from amn.bank.index_settings import Guard, IndexSettings
from amn.errors import CheckpointError
from amn.kernel import bindings as kernel

__all__ = ["CellBank", "Guard", "IndexSettings", "open_index", "require_faiss"]

Vectors = NDArray[np.float32]


class CellBank:
    """A mapped bank with an index; attributes as `amn.bank.exact.Bank`. One thread searches it.

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
        self.manifest, self.vectors, self.multiplicity = manifest, vectors, multiplicity
        self.settings = IndexSettings(**(manifest.index or {}))
        self.guard = Guard()
        self.observer: Callable[[Vectors, Neighbours], None] | None = None
        self._search = search

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
        queries = np.ascontiguousarray(predictions, np.float32)
        best, second, ids, twice = self._search.top2(queries, self.settings, self.guard)
        found = Neighbours(best, second, ids, ~(twice & self.guard.doubtful(best, second)))
        if self.observer is not None:
            self.observer(queries, found)
        return found


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
        codes, vectors = faiss.read_index(str(folder / CODES)), np.asarray(stored)
        search = (LoopSearch if kernel.READY else ArraySearch)(faiss, cells, codes, vectors)
        return CellBank(vectors, multiplicity, manifest, search)
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
