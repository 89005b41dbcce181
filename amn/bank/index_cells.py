"""The cells of an index: a projection on the bank's main directions, and K centroids there.

A reference is filed under its nearest cell and under a second one, whose residual should point
elsewhere: a query that lies on the far side of the first has a good chance with the second. That
costs twice the codes and halves what is missed (docs/bank.md has the figures).
Source of the second choice: SOAR, Sun et al. 2023, https://arxiv.org/abs/2404.00774.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amn.errors import CheckpointError

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]

_ROUNDS = 10
_SAMPLED_A_CELL = 40
#: Nearest cells among which the second one is chosen.
_NEAR = 8
#: Directions in one 4-bit code; the places that a code leaves free are zero.
WIDTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """The cells of an index, which a query is compared with first.

    Attributes:
        projection: Shape (768, d + 1): orthonormal columns, and one of zeros.
        centroids: Shape (K, d).    half: Shape (K,): half of their squared lengths.
        columns: Shape (4 G,): which projected direction stands in which place of the G codes; d for none.
    """

    projection: Vectors
    centroids: Vectors
    half: Vectors
    columns: NDArray[np.intp]

    def score(self, queries: Vectors) -> tuple[Vectors, Vectors]:
        """(B, 768) -> projected (B, d + 1), and how near each cell is, (B, K): dot product minus `half`."""
        flat = queries @ self.projection
        scores: Vectors = np.matmul(flat[:, :-1], self.centroids.T, dtype=np.float32)
        scores -= self.half
        return flat, scores

    def nearest(self, scores: Vectors, count: int, within: float) -> tuple[Ids, Vectors]:
        """The best `count` cells of (B, K) scores, best first, and their dot products with the query.

        A cell whose score is more than `within` below the best one's is replaced by -1.
        """
        found = torch.topk(torch.from_numpy(scores), count)
        near, cells = found.values.numpy(), found.indices.numpy()
        far = near < near[:, :1] - within
        inner: Vectors = near + self.half.take(cells)
        cells[far] = -1
        return cells, inner

    def spread(self, flat: Vectors) -> Vectors:
        """(B, d + 1) -> (B, 4 G), in the order of the codes."""
        return flat.take(self.columns, axis=1)


def project(projection: Vectors, rows: NDArray[np.floating]) -> Vectors:
    """(n, 768) -> (n, d + 1)."""
    made: Vectors = rows.astype(np.float32) @ projection
    return made


def fit_projection(sample: Vectors, dimensions: int) -> Vectors:
    """The directions with the most energy, and a column of zeros, (768, d + 1)."""
    energy = torch.from_numpy(sample.T @ sample)
    directions = torch.linalg.eigh(energy).eigenvectors.flip(1)[:, :dimensions].numpy()
    return np.ascontiguousarray(np.hstack([directions, np.zeros((len(directions), 1), np.float32)]))


def fit_centroids(flat: Vectors, cells: int, seed: int) -> Vectors:
    """K-means of rows (n, d) -> (K, d), on a sample."""
    random = np.random.default_rng(seed)
    count = min(len(flat), cells * _SAMPLED_A_CELL)
    sample = torch.from_numpy(flat[np.sort(random.choice(len(flat), count, replace=False))])
    centroids = sample[torch.from_numpy(random.choice(count, cells, replace=False))].clone()
    for _ in range(_ROUNDS):
        place = (sample @ centroids.T - (centroids * centroids).sum(1) / 2).argmax(1)
        size = torch.bincount(place, minlength=cells)
        sums = torch.zeros_like(centroids).index_add_(0, place, sample)
        filled = size > 0  # an empty cell stays where it is
        centroids[filled] = sums[filled] / size[filled, None]
    return centroids.numpy()


def assign(flat: Vectors, centroids: Vectors) -> tuple[Ids, Ids]:
    """The two cells of each row (n, d)."""
    near_count = min(_NEAR, len(centroids))
    half = torch.from_numpy((centroids * centroids).sum(1) / 2)
    near = (torch.from_numpy(flat) @ torch.from_numpy(centroids).T - half).topk(near_count, dim=1)
    order = near.indices.numpy()  # (n, 8)
    residual = flat[:, None] - centroids[order]  # (n, 8, d)
    first = residual[:, 0]
    along = np.vecdot(residual, first[:, None]) ** 2 / np.maximum(np.vecdot(first, first), 1e-9)[:, None]
    cost = np.vecdot(residual, residual) + along
    cost[:, 0] = np.inf
    return order[:, 0], order[np.arange(len(order)), cost.argmin(axis=1)]


def lay_out(weights: NDArray[np.floating], groups: int) -> NDArray[np.intp]:
    """Shares out the codes: one direction a code where the error matters most, then two, then four.

    Args:
        weights: Shape (d,): expected squared error of a cosine if the direction had no code; falling.

    Returns:
        `Cells.columns`.
    """
    # What a 4-bit code leaves of a normal variable's variance, when it holds 1, 2 or 4 of them.
    left = {1: 0.0115, 2: 0.118, 4: 0.36}
    total = np.concatenate([[0.0], np.cumsum(weights)])
    best, chosen = np.inf, (0, 0, groups)
    for ones in range(0, groups + 1, 4):
        for twos in range(0, groups - ones + 1, 4):
            fours = groups - ones - twos
            ends = ones, ones + 2 * twos, ones + 2 * twos + 4 * fours
            if ends[2] > len(weights):
                continue
            parts = np.diff(total[[0, *ends, len(weights)]])
            error = float(parts @ [left[1], left[2], left[4], 1.0])
            if error < best:
                best, chosen = error, (ones, twos, fours)
    places, direction = [], 0
    for size, count in zip((1, 2, 4), chosen, strict=True):
        for _ in range(count):
            held = [*range(direction, direction + size)]
            places += [min(one, len(weights)) for one in held] + [len(weights)] * (WIDTH - size)
            direction += size
    return np.array(places, dtype=np.intp)


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
