"""The two nearest references of a prediction, and the base of every kind of bank that finds them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amn.bank.files import BankManifest, Multiplicity

Vectors = NDArray[np.float32]


class Neighbours(NamedTuple):
    """The nearest references of a batch of predictions.

    Attributes:
        best, second: Shape (B,), float32: the two best cosines found. What is found is never above
            the true one: an approximate search may miss a reference, and computes no wrong cosine.
        ids: Shape (B,): row of the best reference.
        certain: Shape (B,), bool: an exact search is not expected to decide otherwise. Always true
            where the search is exact.
    """

    best: Vectors
    second: Vectors
    ids: NDArray[np.intp]
    certain: NDArray[np.bool_]


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
        """The two best cosines of each prediction (B, 768), float32, unit norm."""
