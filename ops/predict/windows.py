"""Rows of vectors in their documents, and the contexts and truths that they make.

The context of a row is that row and the four before it in its document; the row after it is the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

K, D = 5, 768
#: Code and message of rows that have no context.
NULL_VECTOR = "null_vector", "a vector of the context is null, holds a null, or has another length"
SHORT_DOCUMENT = "short_document", f"fewer than {K - 1} vectors of its document come before it"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Some rows of a row group, in order.

    Attributes:
        file: Name of the file.
        first_row: Number in the file of the first.
        contexts: Shape (N, 5, 768); zeros where there is none.
        errors: By row without a context, code and message.
        truth: Shape (N, 768).
        known: Shape (N,): which truths are known.
        kept: The columns that go to the target as they are.
    """

    file: str
    first_row: int
    contexts: NDArray[np.floating]
    errors: dict[int, tuple[str, str]]
    truth: NDArray[np.floating]
    known: NDArray[np.bool_]
    kept: pa.RecordBatch


@dataclass(slots=True)
class VectorRows:
    """Vectors with their documents."""

    values: NDArray[np.floating]
    good: NDArray[np.bool_]
    documents: NDArray[np.str_]

    @classmethod
    def none(cls) -> VectorRows:
        """Return no rows."""
        return cls(np.zeros((0, D), np.float32), np.zeros(0, bool), np.zeros(0, np.str_))

    def __add__(self, other: VectorRows) -> VectorRows:
        return VectorRows(
            np.concatenate([self.values, other.values]) if len(self.values) else other.values,
            np.concatenate([self.good, other.good]),
            np.concatenate([self.documents, other.documents]),
        )

    def last(self, count: int) -> VectorRows:
        """Return a copy of the last rows, at most so many: it outlives the rows."""
        return VectorRows(
            self.values[-count:].copy(), self.good[-count:].copy(), self.documents[-count:].copy()
        )


def windows(before: VectorRows, rows: VectorRows, after: VectorRows, **beside: Any) -> RowBlock:
    """Return the windows of some rows; those before and after are of the same or other documents."""
    count, lead = len(rows.values), K - 1
    padding = lead - len(before.values)
    all_ = before + rows
    values = np.concatenate([np.zeros((padding, D), all_.values.dtype), all_.values])
    good = np.concatenate([np.zeros(padding, bool), all_.good])
    documents = np.concatenate([np.full(padding, ""), all_.documents])
    views = sliding_window_view(values, K, axis=0).transpose(0, 2, 1)
    whole = sliding_window_view(good, K).all(axis=1)
    same = documents[:count] == documents[lead:]
    same[:padding] = False
    nexts = VectorRows(values[lead:], good[lead:], documents[lead:]) + VectorRows(
        after.values[:1], after.good[:1], after.documents[:1]
    )
    following = len(nexts.values) - 1
    known = np.zeros(count, bool)
    truth = np.zeros((count, D), values.dtype)
    known[:following] = nexts.good[1:] & (nexts.documents[1:] == nexts.documents[:-1])[:following]
    truth[:following] = nexts.values[1:]
    errors = dict.fromkeys(np.flatnonzero(same & ~whole).tolist(), NULL_VECTOR)
    errors |= dict.fromkeys(np.flatnonzero(~same).tolist(), SHORT_DOCUMENT)
    return RowBlock(
        contexts=clean(views, same & whole),
        errors=errors,
        truth=truth,
        known=known,
        **beside,
    )


def clean(values: NDArray[np.floating], good: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Return rows of their own, float64 narrowed to float32, with zeros where there is no context."""
    kind = np.float32 if values.dtype == np.float64 else values.dtype
    found = values.astype(kind, order="C")
    found[~good] = 0
    return found
