"""Rows of vectors in their documents, and the contexts and truths that they make.

The context of a row is that row and the four before it in its document; the row after it is the truth.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ops.predict.columns import TEXT, Texts
from ops.predict.settings import SHORT_DOCUMENT
from producer.errors import InvalidRequest
from producer.protocol.checks import are_unit, checked_context
from producer.windows import Windows

K, D = 5, 768
_HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
#: Code and message of rows that have no context.
NULL_VECTOR = "null_vector", "a vector of the context is null, holds a null, or has another length"
_SHORT = SHORT_DOCUMENT, f"fewer than {K - 1} vectors of its document come before it"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Some rows of a row group, in order.

    The newest vector of row i is `vectors[4 + step * i]`, and its context that one and the four before it:
    rows of documents share their vectors, contexts have five each.

    Attributes:
        group: Number of the row group in its data set.
        file: Name of the file.
        first_row: Number in the file of the first.
        vectors: Shape (M, 768), float16 or float32, with one behind the last context of documents; zeros
            where there is none.
        step: 1 in documents, 5 in contexts.
        errors: By row without a context, code and message.
        known: Shape (N,): whether the vector behind the context is known to be the truth.
        kept: The columns that go to the target as they are.
        wide: The vectors as float32, once they were checked, where a truth is known.
    """

    group: int
    file: str
    first_row: int
    vectors: NDArray[np.floating]
    step: int
    errors: dict[int, tuple[str, str]]
    known: NDArray[np.bool_]
    kept: pa.RecordBatch
    wide: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, D), np.float32))

    def __len__(self) -> int:
        return len(self.known)

    @property
    def windows(self) -> Windows:
        """The contexts of all rows."""
        return self.windows_of(np.arange(len(self)))

    def windows_of(self, rows: NDArray[np.intp]) -> Windows:
        """Return the contexts of some rows, over the vectors of all."""
        return Windows(vectors=self.vectors, ends=K - 1 + self.step * rows, checked=True)

    @property
    def contexts(self) -> NDArray[np.floating]:
        """A copy of the contexts, shape (N, 5, 768)."""
        return self.windows.contexts()

    @property
    def good(self) -> NDArray[np.intp]:
        """The rows without an error."""
        whole = np.ones(len(self), bool)
        whole[list(self.errors)] = False
        return np.flatnonzero(whole)

    def beside(self, vectors: NDArray[np.floating], steps: int) -> NDArray[np.floating]:
        """Return a view of shape (N, 768): the vectors so many steps behind the newest of each row.

        Args:
            vectors: Shape (M, 768), those of the block, perhaps in another precision.
            steps: 1 of documents is the truth.
        """
        return vectors[K - 1 + steps :: self.step][: len(self)]


@dataclass(slots=True)
class VectorRows:
    """Vectors with their documents."""

    values: NDArray[np.floating]
    good: NDArray[np.bool_]
    documents: Texts

    @classmethod
    def none(cls) -> VectorRows:
        """Return no rows."""
        return cls(np.zeros((0, D), np.float32), np.zeros(0, bool), np.zeros(0, TEXT))

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
    padding, following = lead - len(before.values), min(len(after.values), 1)
    none = np.zeros((padding, D), rows.values.dtype), np.zeros((1 - following, D), rows.values.dtype)
    values = np.concatenate([none[0], before.values, rows.values, after.values[:1], none[1]])
    good = np.concatenate([none[0][:, 0], before.good, rows.good, after.good[:1], none[1][:, 0]]).astype(bool)
    none_of = np.full(padding, "", TEXT), np.full(1 - following, "", TEXT)
    documents = np.concatenate(
        [none_of[0], before.documents, rows.documents, after.documents[:1], none_of[1]]
    )
    whole = sliding_window_view(good[:-1], K).all(axis=1)
    same = documents[:count] == documents[lead:-1]
    same[:padding] = False
    known = good[K:] & (documents[K:] == documents[lead:-1])
    errors = dict.fromkeys(np.flatnonzero(same & ~whole).tolist(), NULL_VECTOR)
    errors |= dict.fromkeys(np.flatnonzero(~same).tolist(), _SHORT)
    return RowBlock(vectors=clean(values, good), step=1, errors=errors, known=known, **beside)


def clean(values: NDArray[np.floating], good: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Return rows of their own, float64 narrowed to float32, with zeros where there is no vector."""
    kind = np.float32 if values.dtype == np.float64 else values.dtype
    found = values.astype(kind, order="C")
    found[~good] = 0
    return found


def widened(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return vectors as float32: float16 by a table of all its values, in half the time of NumPy's cast."""
    if vectors.dtype == np.float16:
        return _HALVES.take(vectors.view(np.uint16), mode="clip")
    return vectors.astype(np.float32, copy=False)


def checked(block: RowBlock, normalize: bool) -> RowBlock:
    """Return a block whose rows without an error keep the contract; each vector is looked at once."""
    vectors, wide = block.vectors, widened(block.vectors)
    good = are_unit(wide)
    if normalize and not good.all():
        vectors = vectors.copy()
        with np.errstate(all="ignore"):
            length = np.maximum(np.linalg.norm(wide[~good], axis=1, keepdims=True), 1e-30)
            vectors[~good] = wide[~good] / length  # zeros stay zeros, and are named as such
        wide = widened(vectors)
        good = are_unit(wide)
    errors, wide = dict(block.errors), wide if block.known.any() else block.wide
    block = dataclasses.replace(block, vectors=vectors, wide=wide, errors=errors)
    windows = block.windows
    for row in np.flatnonzero(~good[windows.rows].all(axis=1)).tolist():
        if row not in block.errors:
            try:
                checked_context(vectors[windows.rows[row]], normalize=normalize)
            except InvalidRequest as error:
                block.errors[row] = error.code, str(error)
    return block
