"""Makes the index of a large bank: cells, and the 4-bit codes of every reference in both its cells.

A code says where a reference lies relative to its cell's centroid. Faiss fits and packs the codes, and
scans them 32 at a time; everything else is here and in amn/bank/index_cells.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.bank.files import CELLS, CODES
from amn.bank.index_cells import (
    WIDTH,
    Cells,
    Ids,
    Vectors,
    assign,
    fit_centroids,
    fit_projection,
    lay_out,
    project,
    require_faiss,
)
from amn.bank.settings import IndexSettings

_ROWS = 16_384
_SAMPLE = 40_000
_BITS = 4

OnRows = Callable[[int], None]


class Filing:
    """Every vector's place: its projection and its two cells.

    Attributes:
        settings: As given.
        projection: Shape (768, d + 1).    flat: Shape (N, d + 1).    centroids: Shape (K, d).
        cells: Shape (N, 2): nearest cell, and the second one.
    """

    def __init__(
        self, vectors: NDArray[np.floating], settings: IndexSettings, on_rows: OnRows = lambda done: None
    ) -> None:
        count = len(vectors)
        self.settings = settings
        random = np.random.default_rng(settings.seed)
        drawn = np.sort(random.choice(count, min(count, _SAMPLE), replace=False))
        self.projection = fit_projection(vectors[drawn].astype(np.float32), settings.dimensions)
        self.flat = np.empty((count, settings.dimensions + 1), dtype=np.float32)
        self.cells = np.empty((count, 2), dtype=np.int32)
        for start in range(0, count, _ROWS):
            rows = slice(start, start + _ROWS)
            self.flat[rows] = project(self.projection, vectors[rows])
        self.centroids = fit_centroids(self.flat[:, :-1], settings.cells, settings.seed)
        for start in range(0, count, _ROWS):
            rows = slice(start, start + _ROWS)
            self.cells[rows] = np.stack(assign(self.flat[rows, :-1], self.centroids), axis=1)
            on_rows(min(start + _ROWS, count))

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
    sample = np.sort(np.random.default_rng(settings.seed).choice(count, min(count, _SAMPLE), replace=False))
    cells = Cells(
        projection=filing.projection,
        centroids=centroids,
        half=((centroids * centroids).sum(axis=1) / 2).astype(np.float32),
        columns=lay_out(_weights(filing, sample), settings.groups),
    )
    np.savez(folder / CELLS, allow_pickle=False, **_arrays(cells))
    middle = np.hstack([centroids, np.zeros((len(centroids), 1), np.float32)])
    quantizer = faiss.IndexFlatIP(WIDTH * settings.groups)
    quantizer.add(cells.spread(middle))
    # Two steps: the plain index takes the cells that it is given, the packed one is made from it.
    plain = faiss.IndexIVFPQ(
        quantizer,
        WIDTH * settings.groups,
        settings.cells,
        settings.groups,
        _BITS,
        faiss.METRIC_INNER_PRODUCT,
    )
    plain.by_residual = True
    residuals = np.vstack([filing.flat[sample] - middle[filing.cells[sample, i]] for i in (0, 1)])
    plain.pq.train(cells.spread(residuals))
    plain.is_trained = True
    for start in range(0, count, _ROWS):
        end = min(start + _ROWS, count)
        points, ids = cells.spread(filing.flat[start:end]), np.arange(start, end)
        for i in (0, 1):
            _add(faiss, plain, points, ids, filing.cells[start:end, i].astype(np.int64))
        on_rows(end)
    faiss.write_index(faiss.IndexIVFPQFastScan(plain), str(folder / CODES))
    return asdict(settings)


def _add(faiss: Any, index: Any, points: Vectors, ids: Ids, cells: Ids) -> None:
    pointer = faiss.swig_ptr
    index.add_core(len(points), pointer(points), pointer(ids), pointer(cells), None)


def _weights(filing: Filing, sample: Ids) -> NDArray[np.floating]:
    """Returns the cost of an error in each direction: a query's energy, times spread around a centroid.

    Predictions are smoother than texts, as the centroids are; so these stand for the queries.
    """
    flat, home = filing.flat[sample, :-1], filing.centroids[filing.cells[sample, 0]]
    weights: NDArray[np.floating] = (home**2).mean(axis=0) * ((flat - home) ** 2).mean(axis=0)
    return weights


def _arrays(cells: Cells) -> dict[str, NDArray[Any]]:
    return {name: getattr(cells, name) for name in ("projection", "centroids", "half", "columns")}
