"""The cells of a large bank, and the 4-bit codes of every reference in both of its cells.

References are projected on the bank's main directions; K centroids lie there. A reference is filed under
its nearest cell and under a second one, whose residual should point elsewhere: a query that lies on the
far side of the first has a good chance with the second. That costs twice the codes and halves what is
missed (docs/bank.md has the figures). A code says where a reference lies relative to its cell's centroid;
faiss fits and packs the codes, and scans them 32 at a time.
Source of the second choice: SOAR, Sun et al. 2023, https://arxiv.org/abs/2404.00774.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amn.bank.files import CELLS, CODES
from amn.bank.search import WIDTH, Cells, require_faiss
from amn.bank.settings import IndexSettings
from amn.data.vectors import chunks

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]
OnRows = Callable[[int], None]

#: Vectors that the projection and the codes are fitted on, and for each cell its centroid.
_SAMPLE, _SAMPLED_A_CELL = 40_000, 40
_ROUNDS = 10
#: Nearest cells among which the second one is chosen.
_NEAR = 8
_BITS = 4


class Filing:
    """The projection and the two cells of every vector.

    Attributes:
        settings: The settings of the index.
        projection: Shape (768, d + 1): the directions with the most energy, and a column of zeros.
        flat: Shape (N, d + 1).    centroids: Shape (K, d).
        cells: Shape (N, 2): nearest cell, and the second one.
    """

    def __init__(
        self, vectors: NDArray[np.floating], settings: IndexSettings, on_rows: OnRows = lambda done: None
    ) -> None:
        count, d = len(vectors), settings.dimensions
        self.settings = settings
        sample = torch.from_numpy(vectors[_drawn(count, settings.seed)].astype(np.float32))
        directions = torch.linalg.eigh(sample.T @ sample).eigenvectors.flip(1)[:, :d].numpy()
        blank = np.zeros((len(directions), 1), np.float32)
        self.projection = np.ascontiguousarray(np.hstack([directions, blank]))
        self.flat = np.empty((count, d + 1), dtype=np.float32)
        self.cells = np.empty((count, 2), dtype=np.int32)
        for rows in chunks(count):
            self.flat[rows] = vectors[rows].astype(np.float32) @ self.projection
        self.centroids = fit_centroids(self.flat[:, :-1], settings.cells, settings.seed)
        for rows in chunks(count):
            self.cells[rows] = _two_cells(self.flat[rows, :-1], self.centroids)
            on_rows(rows.stop)

    def take(self, rows: NDArray[np.integer]) -> None:
        """Keeps these rows, in this order."""
        self.flat, self.cells = self.flat[rows], self.cells[rows]


def write_index(folder: Path, filing: Filing, on_rows: OnRows = lambda done: None) -> dict[str, Any]:
    """Writes `cells.npz` and `codes.faiss` for vectors that are stored in the order of `filing`.

    Returns:
        The parameters, for the manifest.
    """
    faiss = require_faiss(f"reference bank {folder}")
    settings, centroids, count = filing.settings, filing.centroids, len(filing.flat)
    sample = _drawn(count, settings.seed)
    cells = Cells(
        projection=filing.projection,
        centroids=centroids,
        half=((centroids * centroids).sum(axis=1) / 2).astype(np.float32),
        columns=_lay_out(_weights(filing, sample), settings.groups),
    )
    np.savez(folder / CELLS, allow_pickle=False, **asdict(cells))
    middle = np.hstack([centroids, np.zeros((len(centroids), 1), np.float32)])
    size = WIDTH * settings.groups
    quantizer = faiss.IndexFlatIP(size)
    quantizer.add(middle.take(cells.columns, axis=1))
    # Two steps: the plain index takes the cells that it is given, the packed one is made from it.
    product = faiss.METRIC_INNER_PRODUCT
    plain = faiss.IndexIVFPQ(quantizer, size, settings.cells, settings.groups, _BITS, product)
    plain.by_residual = True
    residuals = np.vstack([filing.flat[sample] - middle[filing.cells[sample, i]] for i in (0, 1)])
    plain.pq.train(residuals.take(cells.columns, axis=1))
    plain.is_trained = True
    for rows in chunks(count):
        points, ids = filing.flat[rows].take(cells.columns, axis=1), np.arange(rows.start, rows.stop)
        for filed in filing.cells[rows].T.astype(np.int64, order="C"):
            plain.add_core(len(ids), *map(faiss.swig_ptr, (points, ids, filed)), None)
        on_rows(rows.stop)
    faiss.write_index(faiss.IndexIVFPQFastScan(plain), str(folder / CODES))
    return settings.to_dict()


def _drawn(count: int, seed: int) -> Ids:
    return np.sort(np.random.default_rng(seed).choice(count, min(count, _SAMPLE), replace=False))


def fit_centroids(flat: Vectors, cells: int, seed: int) -> Vectors:
    """K-means of rows (n, d) -> (K, d), on a sample."""
    random = np.random.default_rng(seed)
    count = min(len(flat), cells * _SAMPLED_A_CELL)
    sample = torch.from_numpy(flat[np.sort(random.choice(len(flat), count, replace=False))])
    centroids = sample[torch.from_numpy(random.choice(count, cells, replace=False))].clone()
    for _ in range(_ROUNDS):
        nearest = (sample @ centroids.T - (centroids * centroids).sum(1) / 2).argmax(1)
        size = torch.bincount(nearest, minlength=cells)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, sample)
        filled = size > 0  # an empty cell stays where it is
        centroids[filled] = sums[filled] / size[filled, None]
    return centroids.numpy()


def _two_cells(flat: Vectors, centroids: Vectors) -> Ids:
    """The two cells of each row (n, d), (n, 2)."""
    half = torch.from_numpy((centroids * centroids).sum(1) / 2)
    scores = torch.from_numpy(flat) @ torch.from_numpy(centroids).T - half
    order = scores.topk(min(_NEAR, len(centroids)), dim=1).indices.numpy()  # (n, 8)
    residual = flat[:, None] - centroids[order]  # (n, 8, d)
    first = residual[:, 0]
    along = np.vecdot(residual, first[:, None]) ** 2 / np.maximum(np.vecdot(first, first), 1e-9)[:, None]
    cost = np.vecdot(residual, residual) + along
    cost[:, 0] = np.inf
    return np.stack([order[:, 0], order[np.arange(len(order)), cost.argmin(axis=1)]], axis=1)


def _weights(filing: Filing, sample: Ids) -> NDArray[np.floating]:
    """Returns the cost of an error in each direction: a query's energy, times spread around a centroid.

    Predictions are smoother than texts, as the centroids are; so these stand for the queries.
    """
    flat, home = filing.flat[sample, :-1], filing.centroids[filing.cells[sample, 0]]
    weights: NDArray[np.floating] = (home**2).mean(axis=0) * ((flat - home) ** 2).mean(axis=0)
    return weights


def _lay_out(weights: NDArray[np.floating], groups: int) -> NDArray[np.intp]:
    """Shares out the codes: one direction a code where the error matters most, then two, then four.

    Args:
        weights: Shape (d,): expected squared error of a cosine if the direction had no code; falling.

    Returns:
        `Cells.columns`.
    """
    # The share of its variance that a normal variable keeps where a 4-bit code holds 1, 2 or 4 of them.
    left = {1: 0.0115, 2: 0.118, 4: 0.36}
    total = np.concatenate([[0.0], np.cumsum(weights)])
    best, chosen = np.inf, (0, 0, groups)
    for ones in range(0, groups + 1, 4):
        for twos in range(0, groups - ones + 1, 4):
            fours = groups - ones - twos
            ends = ones, ones + 2 * twos, ones + 2 * twos + 4 * fours
            if ends[2] <= len(weights):
                parts = np.diff(total[[0, *ends, len(weights)]])
                error = float(parts @ [*left.values(), 1.0])
                if error < best:
                    best, chosen = error, (ones, twos, fours)
    columns, direction = [], 0
    for size, count in zip(left, chosen, strict=True):
        for _ in range(count):
            held = [min(one, len(weights)) for one in range(direction, direction + size)]
            columns += held + [len(weights)] * (WIDTH - size)
            direction += size
    return np.array(columns, dtype=np.intp)
