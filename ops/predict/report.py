"""The result of a run: cosines with the truth, by domain, read from the parts of the target.

Rows of one document are not independent. The error of a mean is the cluster-robust one: residuals are summed
by document first (Liang and Zeger, Biometrika 73, 1986).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from ops.predict.columns import TEXT, Texts, texts

COSINES = ("cosine_amn", "cosine", "cosine_mean", "cosine_last")
_ALL = "all"
_Z = 1.96


@dataclass(slots=True)
class Sums:
    """Sums over documents of one domain, of values (4,) a row."""

    rows: int = 0
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(COSINES)))
    by_document: dict[str, tuple[int, float]] = field(default_factory=dict)

    def add(self, values: NDArray[np.float64], documents: Texts) -> None:
        """Add rows (n, 4) of documents (n,)."""
        self.rows += len(values)
        self.total += values.sum(axis=0)
        names, member = np.unique(documents, return_inverse=True)
        counts, sums = np.bincount(member), np.bincount(member, values[:, 1])
        for name, count, value in zip(names.tolist(), counts.tolist(), sums.tolist(), strict=True):
            before = self.by_document.get(name, (0, 0.0))
            self.by_document[name] = before[0] + count, before[1] + value

    def to_json(self) -> dict[str, Any]:
        """Return means, and the 95 % interval of the final answers' mean."""
        mean = self.total / max(self.rows, 1)
        counts, sums = np.array(list(self.by_document.values()), float).reshape(-1, 2).T
        error = float(np.sqrt(((sums - counts * mean[1]) ** 2).sum())) / max(self.rows, 1)
        named = {name: round(float(value), 5) for name, value in zip(COSINES, mean, strict=True)}
        interval = [round(float(mean[1] + side * _Z * error), 5) for side in (-1, 1)]
        return {"rows": self.rows, "documents": len(counts), **named, "interval": interval}


def cosines_by_domain(parts: Iterable[Path], document: str, domain: str) -> dict[str, dict[str, Any]]:
    """Return, for all rows with a truth and for each domain, means with their intervals; {} without any.

    Args:
        parts: The files of the target that count.
        document, domain: Names of the columns; either may be missing.
    """
    sums: dict[str, Sums] = {}
    for part in parts:
        file = parquet.ParquetFile(part)
        names = [name for name in (document, domain, "file", *COSINES) if name in file.schema_arrow.names]
        for batch in file.iter_batches(65_536, columns=names, use_threads=False):
            _add(sums, pa.Table.from_batches([batch]), document, domain)
    return {name: one.to_json() for name, one in sums.items()}


def _add(sums: dict[str, Sums], table: pa.Table, document: str, domain: str) -> None:
    table = table.filter(table["cosine"].is_valid())
    if not table.num_rows:
        return
    values = np.stack([table[name].to_numpy() for name in COSINES], axis=1).astype(np.float64)
    by = document if document in table.column_names else "file"
    documents = _texts(table, by) if by in table.column_names else np.full(len(values), "", TEXT)
    sums.setdefault(_ALL, Sums()).add(values, documents)
    if domain in table.column_names:
        domains = _texts(table, domain)
        for name in np.unique(domains).tolist():
            label = f"domain {name}" if name == _ALL else name  # the name of all rows is taken
            sums.setdefault(label, Sums()).add(values[domains == name], documents[domains == name])


def _texts(table: pa.Table, name: str) -> Texts:
    return np.concatenate([texts(chunk) for chunk in table[name].chunks])


def shown(cosines: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of a table: domain, rows, documents, the four means, the interval of the final ones."""
    return [
        (
            name,
            f"{row['rows']:,}",
            f"{row['documents']:,}",
            *(f"{row[cosine]:.4f}" for cosine in COSINES),
            "{:.4f} to {:.4f}".format(*row["interval"]),
        )
        for name, row in cosines.items()
    ]
