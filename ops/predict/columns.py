"""The columns of a file: their names, and those of vectors in every Arrow form as one NumPy array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from amn.errors import FileRefused

#: Usual names of the document and the position of a row.
KEYS = ("doc_id", "position")
#: Each value takes the room of its own length, and keeps zeros at its end: NumPy's older type does neither.
TEXT = np.dtypes.StringDType()
Texts = NDArray[Any]
_BINARY_DTYPES: dict[int, np.dtype[Any]] = {size: np.dtype(f"<f{size}") for size in (2, 4, 8)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnNames:
    """The names of the columns; empty ones are looked for, or not used.

    Attributes:
        vector: The vectors or contexts.
        document, position: Of documents; a file without `document` is one document.
        domain: The kind of text.
        carried: Columns that are copied to the target.
    """

    vector: str = ""
    document: str = KEYS[0]
    position: str = KEYS[1]
    domain: str = "domain"
    carried: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Numbers:
    """Rows of numbers.

    Attributes:
        values: Shape (N, width), float16, float32 or float64. A bad row means nothing.
        good: Shape (N,), False for a row that is null, holds a null, or has another length.
    """

    values: NDArray[np.floating]
    good: NDArray[np.bool_]


def width_of(kind: pa.DataType, shape: tuple[int, ...]) -> str:
    """Say why a column cannot hold rows of this shape; "" if it can.

    Args:
        kind: The type of the column.
        shape: (768,) of vectors, (5, 768) of contexts, which may also lie flat.
    """
    total = int(np.prod(shape))
    if pa.types.is_fixed_size_binary(kind):
        if kind.byte_width % total or kind.byte_width // total not in _BINARY_DTYPES:
            return (
                f"fixed-size binary of {kind.byte_width} bytes; {total} numbers take {total * 4} as float32"
            )
        return ""
    lengths, inner = [], kind
    while pa.types.is_list(inner) or pa.types.is_large_list(inner) or pa.types.is_fixed_size_list(inner):
        lengths.append(inner.list_size if pa.types.is_fixed_size_list(inner) else None)
        inner = inner.value_type
    if not lengths or not pa.types.is_floating(inner):
        return f"{kind}; give lists of float16, float32 or float64, or fixed-size binary"
    for wanted in ((total,), shape):
        if len(lengths) == len(wanted) and all(a in (None, b) for a, b in zip(lengths, wanted, strict=True)):
            return ""
    return f"{kind}; a row is {' x '.join(map(str, shape))} numbers"


def numbers(column: pa.Array, shape: tuple[int, ...]) -> Numbers:
    """Return the rows of a column.

    Args:
        column: Of a type that `width_of` accepts.
        shape: (768,) or (5, 768).

    Raises:
        FileRefused: Its type is none of those.
    """
    if why := width_of(column.type, shape):
        raise FileRefused(f"a column of vectors is {why}")
    total, count = int(np.prod(shape)), len(column)
    good = ~_nulls(column)
    if pa.types.is_fixed_size_binary(column.type):
        dtype = _BINARY_DTYPES[column.type.byte_width // total]
        size = column.type.byte_width
        flat = np.frombuffer(column.buffers()[1], np.uint8)[column.offset * size :][: count * size]
        return Numbers(flat.view(dtype).reshape(count, total), good)
    nested = pa.types.is_nested(column.type.value_type)
    lengths = (shape[0], total // shape[0]) if nested else (total,)
    values, whole = _flattened(column, lengths)
    return Numbers(values, good & whole)


def texts(column: pa.Array) -> Texts:
    """Return the values of a column as text, bytes in hexadecimal digits, and a null as "(none)".

    Raises:
        FileRefused: Its values are lists or structures.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        column = pa.array([one and one.hex() for one in column.to_pylist()], pa.string())
    elif pa.types.is_duration(kind):
        column = column.cast(pa.int64())
    try:
        found = column.cast(pa.string()).fill_null("(none)").to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise FileRefused(f"a column of {kind} has no text; give text or numbers") from error
    return np.array(found, dtype=TEXT)


def _flattened(column: pa.Array, lengths: tuple[int, ...]) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Return lists of `lengths[0]` items, each of the rest, as rows, and which of them are whole."""
    length, count = lengths[0], len(column)
    if pa.types.is_fixed_size_list(column.type):
        items, whole = column.values[column.offset * length :][: count * length], np.ones(count, bool)
    else:
        starts = column.offsets.to_numpy().astype(np.int64)
        sizes = np.diff(starts)
        whole = (sizes == length) & ~_nulls(column)
        if whole.all():
            items = column.values[starts[0] : starts[-1]]
        else:  # a short row would shift all that follow: only whole ones are taken
            index = np.zeros((count, length), np.int64) + np.arange(length)
            index[whole] += starts[:-1][whole, None]
            longest = len(column.values)
            items = (
                column.values.take(pa.array(np.minimum(index, max(longest - 1, 0)).ravel()))
                if longest
                else (pa.nulls(count * length, column.type.value_type))
            )
    if len(lengths) > 1:
        values, inner = _flattened(items, lengths[1:])
        return values.reshape(count, -1), whole & inner.reshape(count, length).all(axis=1)
    if items.null_count:
        whole = whole & ~_nulls(items).reshape(count, length).any(axis=1)
        items = items.fill_null(0.0)
    return items.to_numpy(zero_copy_only=False).reshape(count, length), whole


def _nulls(column: pa.Array) -> NDArray[np.bool_]:
    if not column.null_count:
        return np.zeros(len(column), bool)
    found: NDArray[np.bool_] = column.is_null().to_numpy(zero_copy_only=False)
    return found
