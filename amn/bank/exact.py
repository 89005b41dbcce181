"""The reference bank: vectors that a prediction is compared with, as a hashed artifact.

A bank is a folder (amn/bank/files.py says what is in it). Near-duplicates (cosine above
`epsilon`) are merged when it is built, so "best minus second best" compares two different texts;
that is the margin method `distinct`. A small bank is searched exactly; a large one through cells
(amn/bank/index.py). Both answer the same question, and look the same to who asks:

    top2(predictions (B, 768)) -> Neighbours
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from amn.bank.files import BankManifest, Multiplicity, check_files, map_arrays, read_manifest
from amn.errors import CheckpointError
from amn.kernel import bindings as kernel

#: Rows of a mapped bank that an exact search takes at a time: 25 MB.
_SLICE_ROWS = 8192
#: So many matrix-vector products take less time than one product of as many rows.
_ONE_BY_ONE = 3


class Neighbours(NamedTuple):
    """What an index says of a batch of predictions.

    Attributes:
        best, second: Shape (B,), float32: the two best cosines found. What is found is never above
            the true one: an approximate search may miss a reference, and computes no wrong cosine.
        ids: Shape (B,): row of the best reference.
        certain: Shape (B,), bool: whether an exact search is not expected to decide otherwise.
            Always, where the search is exact.
    """

    best: NDArray[np.float32]
    second: NDArray[np.float32]
    ids: NDArray[np.intp]
    certain: NDArray[np.bool_]


class Bank(Protocol):
    """A bank of either kind.

    Attributes:
        manifest: The bank's own description.
        vectors: Shape (N, 768), float32, unit norm; mapped from the file where the bank is large.
        multiplicity: Shape (N,): source vectors that each one stands for.
    """

    manifest: BankManifest
    vectors: NDArray[np.float32]
    multiplicity: Multiplicity

    def __len__(self) -> int: ...

    @property
    def bank_id(self) -> str:
        """Stamped on every answer."""
        ...

    def top2(self, predictions: NDArray[np.float32]) -> Neighbours:
        """The two best cosines of each prediction (B, 768), float32, unit norm."""
        ...


class ReferenceBank:
    """Exact nearest neighbours among the bank's vectors; attributes as `Bank`."""

    def __init__(
        self, vectors: NDArray[np.float32], multiplicity: Multiplicity, manifest: BankManifest
    ) -> None:
        self.manifest = manifest
        self.vectors = vectors
        self.multiplicity = multiplicity
        self._loops = kernel.References(vectors) if kernel.READY else None

    def __len__(self) -> int:
        return int(self.vectors.shape[0])

    @property
    def bank_id(self) -> str:
        """Stamped on every answer."""
        return self.manifest.bank_id

    def top2(self, predictions: NDArray[np.float32]) -> Neighbours:
        """The two best cosines of each prediction.

        Args:
            predictions: Shape (B, 768), float32, unit norm.

        Returns:
            Exact neighbours.
        """
        if self._loops is not None:
            best, second, index = self._loops.top2(predictions)
            return Neighbours(best, second, index, np.ones(len(index), dtype=np.bool_))
        if 0 < len(predictions) <= _ONE_BY_ONE:
            scores = np.stack([self.vectors @ prediction for prediction in predictions])
        else:
            scores = predictions @ self.vectors.T  # (B, N)
        best, second, index = _two_best(scores)
        return Neighbours(best, second, index, np.ones(len(index), dtype=np.bool_))


def exact_top2(vectors: NDArray[np.float32], predictions: NDArray[np.float32]) -> Neighbours:
    """Exact neighbours by a pass over all vectors, in slices: the oracle of a bank too large to copy.

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


def _two_best(
    scores: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.intp]]:
    """Best, second best and place of the best of each row; overwrites `scores` (B, N)."""
    rows = np.arange(scores.shape[0])
    # Two passes of argmax cost a sixth of a partial sort at N = 2,048.
    index = scores.argmax(axis=1)
    best = scores[rows, index]
    scores[rows, index] = -2.0
    return best, scores.max(axis=1), index


def load_bank(folder: Path) -> Bank:
    """Loads a bank, or maps it when it is large, and checks it.

    Raises:
        CheckpointError: A file is missing or altered, the vectors are not (N, 768) and unit-norm, or
            the bank needs a package that is not installed.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    stored, multiplicity = map_arrays(folder, manifest)
    if manifest.index is not None:
        from amn.bank.index import open_index

        return open_index(folder, manifest, stored, multiplicity)
    vectors = stored.astype(np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.allclose(norms, 1, atol=1e-3):
        raise CheckpointError(f"reference bank {folder} holds vectors that are not unit-norm")
    return ReferenceBank(np.ascontiguousarray(vectors / norms), multiplicity, manifest)
