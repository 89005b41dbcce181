"""Every Arrow form of a column of vectors gives the same numbers, and names the rows that are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from amn.errors import FileRefused
from ops.predict.columns import numbers

VECTORS = np.random.default_rng(0).normal(size=(9, 768)).astype("f4")
CONTEXTS = np.random.default_rng(1).normal(size=(4, 5, 768)).astype("f2")


def lists(rows: NDArray[Any]) -> list[Any]:
    return [list(row) if row.ndim == 1 else lists(row) for row in rows]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32(), 768),
        pa.list_(pa.float32()),
        pa.large_list(pa.float32()),
        pa.list_(pa.float64()),
        pa.list_(pa.float64(), 768),
    ],
    ids=str,
)
@pytest.mark.parametrize("first", [0, 3])
def test_lists_of_any_kind_are_rows(kind: pa.DataType, first: int) -> None:
    found = numbers(pa.array(lists(VECTORS), kind).slice(first), (768,))
    np.testing.assert_array_equal(found.values, VECTORS[first:])
    assert found.good.all()


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_bytes_of_a_fixed_size_are_rows(dtype: str) -> None:
    rows = VECTORS.astype(dtype)
    column = pa.array([row.tobytes() for row in rows], pa.binary(768 * rows.itemsize)).slice(2)
    found = numbers(column, (768,))
    assert found.values.dtype == rows.dtype
    np.testing.assert_array_equal(found.values, rows[2:])


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.list_(pa.float16(), 768), 5),
        pa.list_(pa.list_(pa.float16())),
        pa.large_list(pa.list_(pa.float16(), 768)),
    ],
    ids=str,
)
def test_nested_lists_are_contexts(kind: pa.DataType) -> None:
    found = numbers(pa.array(lists(CONTEXTS), kind), (5, 768))
    np.testing.assert_array_equal(found.values.reshape(CONTEXTS.shape), CONTEXTS)
    assert found.good.all()


def test_a_flat_row_of_a_context_is_one_too() -> None:
    flat = CONTEXTS.reshape(4, -1)
    found = numbers(pa.array(lists(flat), pa.list_(pa.float16(), 3840)), (5, 768))
    np.testing.assert_array_equal(found.values, flat)


def test_null_short_and_holed_rows_are_named_and_shift_no_other() -> None:
    rows: list[Any] = lists(VECTORS)
    rows[2], rows[3], rows[4][7], rows[8] = None, rows[3][:700], None, rows[8] + [1.0]
    found = numbers(pa.array(rows, pa.list_(pa.float32())), (768,))
    assert np.flatnonzero(~found.good).tolist() == [2, 3, 4, 8]
    np.testing.assert_array_equal(found.values[found.good], VECTORS[[0, 1, 5, 6, 7]])
    fixed = lists(VECTORS)
    fixed[5] = None
    found = numbers(pa.array(fixed, pa.list_(pa.float32(), 768)).slice(4), (768,))
    assert found.good.tolist() == [True, False, True, True, True]
    np.testing.assert_array_equal(found.values[2:], VECTORS[6:])


def test_a_context_with_a_vector_too_few_or_one_too_short_is_none() -> None:
    rows = lists(CONTEXTS)
    rows[1], rows[2][3] = rows[1][:4], rows[2][3][:5]
    found = numbers(pa.array(rows, pa.list_(pa.list_(pa.float16()))), (5, 768))
    assert found.good.tolist() == [True, False, False, True]
    np.testing.assert_array_equal(found.values[3].reshape(5, 768), CONTEXTS[3])


@pytest.mark.parametrize(
    ("column", "text"),
    [
        (pa.array(["a"]), "string; give lists of float16, float32 or float64"),
        (pa.array([[1, 2]], pa.list_(pa.int64())), "list<item: int64>; give lists of"),
        (pa.array([[0.5]], pa.list_(pa.float32(), 1)), "a row is 768 numbers"),
        (pa.array([b"x" * 100], pa.binary(100)), "fixed-size binary of 100 bytes; 768 numbers take 3072"),
    ],
    ids=str,
)
def test_a_column_that_cannot_hold_vectors_is_refused_with_its_type(column: pa.Array, text: str) -> None:
    with pytest.raises(FileRefused) as refused:
        numbers(column, (768,))
    assert text in str(refused.value)
