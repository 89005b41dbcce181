"""Reference banks, opened and searched: the two nearest references of each prediction.

A small bank is read into memory and searched exactly; a large one is mapped and searched through its
index (amn/bank/search.py), and an exact search is its oracle.
"""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amn.bank.files import CELLS, CODES, BankManifest, Multiplicity, check_files, map_arrays, read_manifest
from amn.bank.search import ArraySearch, Cells, LoopSearch, require_faiss
from amn.bank.settings import Guard, IndexSettings
from amn.data.vectors import check_rows
from amn.errors import CheckpointError
from amn.kernel import bindings as kernel

Vectors = NDArray[np.float32]

#: Rows of a mapped bank that are compared at a time: 25 MB.
_SLICE_ROWS = 8192


class Neighbours(NamedTuple):
    """The nearest references of a batch of predictions.

    Attributes:
        best, second: Shape (B,), float32: the two best cosines found. What is found is never above
            the true one: an approximate search may miss a reference, and computes no wrong cosine.
        ids: Shape (B,): row of the best reference.
    """

    best: Vectors
    second: Vectors
    ids: NDArray[np.intp]


class Bank(ABC):
    """A bank of reference vectors.

    Attributes:
        manifest: The bank's own description.    bank_id: Stamped on every answer.
        vectors: Shape (N, 768), float32, unit norm; mapped from the file where the bank is large.
        multiplicity: Shape (N,): source vectors that each one stands for.
    """

    def __init__(self, vectors: Vectors, multiplicity: Multiplicity, manifest: BankManifest) -> None:
        self.manifest, self.bank_id = manifest, manifest.bank_id
        self.vectors, self.multiplicity = vectors, multiplicity

    def __len__(self) -> int:
        return len(self.vectors)

    @abstractmethod
    def top2(self, predictions: Vectors) -> Neighbours:
        """The two best cosines found for each prediction (B, 768), float32, unit norm."""


class ReferenceBank(Bank):
    """A bank that is searched exactly."""

    def __init__(self, vectors: Vectors, multiplicity: Multiplicity, manifest: BankManifest) -> None:
        super().__init__(vectors, multiplicity, manifest)
        self._loops = kernel.References(vectors) if kernel.READY else None

    def top2(self, predictions: Vectors) -> Neighbours:
        """The two best cosines of each prediction (B, 768), float32, unit norm."""
        if self._loops is None:
            return exact_top2(self.vectors, predictions)
        return Neighbours(*self._loops.top2(predictions))


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
        found = Neighbours(*self._search.top2(queries, self.settings, self.guard))
        if self.observer is not None:
            self.observer(queries, found)
        return found


def exact_top2(
    vectors: Vectors, predictions: Vectors, on_rows: Callable[[int], None] = lambda done: None
) -> Neighbours:
    """Exact neighbours by a pass over all vectors, in slices.

    Args:
        vectors: Shape (N, 768), float32, may be mapped.
        predictions: Shape (B, 768), float32, unit norm.
        on_rows: Told how many vectors were compared.
    """
    count = len(predictions)
    rows = np.arange(count)
    best = np.full(count, -2, dtype=np.float32)
    second, ids = best.copy(), np.zeros(count, dtype=np.intp)
    for start in range(0, len(vectors), _SLICE_ROWS):
        scores = predictions @ vectors[start : start + _SLICE_ROWS].T
        # Two passes of argmax cost a sixth of a partial sort at N = 2,048.
        index = scores.argmax(axis=1)
        first = scores[rows, index]
        scores[rows, index] = -2.0
        second = np.maximum(np.maximum(second, scores.max(axis=1)), np.minimum(best, first))
        ids = np.where(first > best, index + start, ids)
        best = np.maximum(best, first)
        on_rows(min(start + _SLICE_ROWS, len(vectors)))
    return Neighbours(best, second, ids)


def load_bank(folder: Path) -> Bank:
    """Loads a bank, or maps it when it is large, and checks it.

    Raises:
        CheckpointError: A file is missing or altered, the vectors are not (N, 768), or the bank needs a
            package that is not installed.
        DataError: The vectors are not unit-norm.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    stored, multiplicity = map_arrays(folder, manifest)
    if manifest.index is not None:
        return open_index(folder, manifest, stored, multiplicity)
    vectors = stored.astype(np.float32)
    check_rows(f"reference bank {folder}", vectors, 0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return ReferenceBank(vectors, multiplicity, manifest)


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
