"""Files become row groups, and their rows contexts that never cross a document."""

from __future__ import annotations

import os
import resource
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import feather, parquet

from amn.errors import FileRefused
from ops.predict import sources
from ops.predict.columns import ColumnNames
from ops.predict.dataset import CONTEXTS, DOCUMENTS, DataSet, RowBlock

LENGTHS = (7, 1, 30, 4, 5, 200, 6, 50)
DOCUMENT = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
POSITION = np.concatenate([np.arange(length) for length in LENGTHS])
ROWS = len(DOCUMENT)
VECTORS = np.random.default_rng(0).normal(size=(ROWS, 768)).astype("f4")


DEFAULT = ColumnNames()


def table(rows: slice = slice(None), **changes: Any) -> pa.Table:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS[rows].reshape(-1)), 768)
    columns: dict[str, Any] = {"doc_id": DOCUMENT[rows], "position": POSITION[rows], "vector": vectors}
    return pa.table({**columns, **changes})


def opened(paths: Sequence[Path], columns: ColumnNames = DEFAULT) -> DataSet:
    return DataSet.of([sources.open_file(path) for path in paths], columns)


def blocks(data: DataSet, first: int = 0) -> list[RowBlock]:
    return [block for group in data.groups[first:] for block in data.blocks(group)]


def written(folder: Path, form: str, vectors: NDArray[Any] = VECTORS) -> list[Path]:
    """The same documents in another form, in one file or two."""
    if form == "parquet":
        parquet.write_table(table(), folder / "a.parquet", row_group_size=37)
        return [folder / "a.parquet"]
    if form == "two files":
        parquet.write_table(table(slice(0, 100)), folder / "a.parquet", row_group_size=3)
        feather.write_feather(table(slice(100, None)), folder / "b.feather", chunksize=64)
        return [folder / "a.parquet", folder / "b.feather"]
    if form == "arrow":
        with (
            pa.OSFile(str(folder / "a.arrow"), "wb") as file,
            pa.ipc.new_file(file, table().schema) as writer,
        ):
            writer.write_table(table(), max_chunksize=50)
        return [folder / "a.arrow"]
    np.savez(folder / "a.npz", vectors=vectors, doc_id=DOCUMENT, position=POSITION)
    return [folder / "a.npz"]


@pytest.mark.parametrize("form", ["parquet", "two files", "arrow", "npz"])
def test_a_context_is_a_row_and_the_four_before_it_in_its_document(tmp_path: Path, form: str) -> None:
    data = opened(written(tmp_path, form))
    assert data.form == DOCUMENTS
    assert data.check_order() == len(LENGTHS)
    row = 0
    for block in blocks(data):
        for i in range(len(block.contexts)):
            if POSITION[row] < 4:
                assert block.errors[i][0] == "short_document"
            else:
                assert i not in block.errors
                np.testing.assert_array_equal(block.contexts[i], VECTORS[row - 4 : row + 1])
            follows = row + 1 < ROWS and DOCUMENT[row + 1] == DOCUMENT[row]
            assert block.known[i] == follows
            if follows:
                np.testing.assert_array_equal(block.beside(block.vectors, 1)[i], VECTORS[row + 1])
            row += 1
    assert row == ROWS


def test_a_later_row_group_alone_has_the_same_contexts_as_in_a_whole_run(tmp_path: Path) -> None:
    paths = written(tmp_path, "two files")
    whole = {(block.file, block.first_row): block for block in blocks(opened(paths))}
    for number in range(len(whole)):
        data = opened(paths)  # it remembers nothing of the row group before
        (alone,) = data.blocks(data.groups[number])
        same = whole[alone.file, alone.first_row]
        np.testing.assert_array_equal(alone.contexts, same.contexts)
        assert alone.errors == same.errors


def test_a_vector_that_is_none_spoils_the_contexts_that_hold_it_and_is_no_truth(tmp_path: Path) -> None:
    vectors = [list(map(float, row)) for row in VECTORS]
    vectors[20] = None  # type: ignore[call-overload]
    column = pa.array(vectors, pa.list_(pa.float32(), 768))
    parquet.write_table(table(vector=column), tmp_path / "a.parquet")
    [block] = blocks(opened([tmp_path / "a.parquet"]))
    spoilt = [i for i, (code, _) in block.errors.items() if code == "null_vector"]
    assert spoilt == [20, 21, 22, 23, 24]
    assert not block.known[19]


def test_contexts_are_rows_of_five_vectors(tmp_path: Path) -> None:
    contexts = np.random.default_rng(0).normal(size=(40, 5, 768)).astype("f2")
    np.save(tmp_path / "a.npy", contexts)
    data = opened([tmp_path / "a.npy"])
    assert data.form == CONTEXTS
    [block] = blocks(data)
    np.testing.assert_array_equal(block.contexts, contexts)
    assert not block.known.any()


def test_an_array_of_vectors_without_ids_is_one_document(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VECTORS)
    data = opened([tmp_path / "a.npy"])
    assert data.form == DOCUMENTS
    [block] = blocks(data)
    assert list(block.errors) == [0, 1, 2, 3]


def test_long_row_groups_come_in_blocks_and_lose_nothing_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ops.predict.dataset.BLOCK_ROWS", 16)
    data = opened(written(tmp_path, "npz"))
    contexts = np.concatenate([block.contexts for block in blocks(data)])
    monkeypatch.setattr("ops.predict.dataset.BLOCK_ROWS", 1024)
    np.testing.assert_array_equal(contexts, blocks(data)[0].contexts)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"position": POSITION[::-1].copy()},
            r"row 1 of document 0 has position 48 after 49; sort the rows by",
        ),
        ({"doc_id": DOCUMENT % 2}, r"row 8 goes on with document 0, which ended before; sort the rows"),
        ({"doc_id": pa.array([None, *DOCUMENT[1:].tolist()])}, r"row 0 has no doc_id \(null or NaN\)"),
    ],
    ids=["positions", "documents apart", "null"],
)
def test_documents_that_are_not_in_order_are_refused_by_row(
    tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    parquet.write_table(table(**changes), tmp_path / "a.parquet")
    data = opened([tmp_path / "a.parquet"])
    with pytest.raises(FileRefused, match=text):
        data.check_order()


@pytest.mark.parametrize(
    ("content", "columns", "text"),
    [
        (
            table().drop(["vector"]),
            ColumnNames(),
            "has no column context or vector or .*name yours with --vector",
        ),
        (table().drop(["position"]), ColumnNames(), "has no column 'position', which documents need"),
        (table(), ColumnNames(vector="emb"), "has no column emb; it has doc_id, position, vector"),
        (table(), ColumnNames(carried=("title",)), "lacks title; it has doc_id, position, vector"),
        (
            table(vector=pa.array(["x"] * ROWS)),
            ColumnNames(),
            "column vector is string; give lists of float16",
        ),
    ],
    ids=["no vectors", "no position", "no such column", "nothing to carry", "text"],
)
def test_a_schema_that_lacks_something_is_refused_before_any_work(
    tmp_path: Path, content: pa.Table, columns: ColumnNames, text: str
) -> None:
    parquet.write_table(content, tmp_path / "a.parquet")
    with pytest.raises(FileRefused, match=text):
        opened([tmp_path / "a.parquet"], columns)


def test_contexts_and_documents_are_not_mixed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VECTORS)
    np.save(tmp_path / "b.npy", np.zeros((3, 5, 768), "f4"))
    with pytest.raises(
        FileRefused, match=r"one run takes one form .*a.npy \(documents\).*b.npy \(contexts\)"
    ):
        opened([tmp_path / "a.npy", tmp_path / "b.npy"])


@pytest.mark.parametrize("suffix", sorted(sources.SUFFIXES))
def test_a_file_that_is_empty_cut_or_something_else_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for content, text in ((b"", "is empty"), (b"PAR1 nothing of the kind", "cannot be read as")):
        path.write_bytes(content)
        with pytest.raises(FileRefused, match=text):
            sources.open_file(path)


def test_a_stream_of_arrow_is_told_from_a_file(tmp_path: Path) -> None:
    with pa.ipc.new_stream(tmp_path / "a.arrow", table().schema) as stream:
        stream.write_table(table())
    with pytest.raises(FileRefused, match="a stream of Arrow is no file: write one with"):
        sources.open_file(tmp_path / "a.arrow")


def test_folders_and_globs_are_files_by_name_each_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.npy", "a.parquet", "notes.txt"):
        (tmp_path / "in" / name).write_bytes(b"x")
    found = sources.expand([str(tmp_path / "in"), str(tmp_path / "in" / "*.npy")])
    assert [path.name for path in found] == ["a.parquet", "b.npy"]
    with pytest.raises(FileRefused, match=r"names no file; give a file, a folder or a glob of"):
        sources.expand([str(tmp_path / "none*")])
    with pytest.raises(FileRefused, match=r"notes.txt has the suffix '.txt'; known are"):
        sources.expand([str(tmp_path / "in" / "notes.txt")])


def test_another_input_has_another_identity(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(table(), path, row_group_size=100)
    before = sources.identity(sources.open_file(path))
    changed = VECTORS.copy()
    changed[-1, 0] += 1
    column = pa.FixedSizeListArray.from_arrays(pa.array(changed.reshape(-1)), 768)
    parquet.write_table(table(vector=column), path, row_group_size=100)
    after = sources.identity(sources.open_file(path))
    assert before["bytes"] == after["bytes"] or before["sha256"] != after["sha256"]
    assert before["mtime_ns"] != after["mtime_ns"]


def test_files_of_one_name_in_two_folders_are_two_documents_with_names_of_their_own(tmp_path: Path) -> None:
    for name, rows in (("x", VECTORS[:10]), ("y", VECTORS[10:20])):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", rows)
    found = blocks(opened([tmp_path / "x" / "a.npy", tmp_path / "y" / "a.npy"]))
    assert [block.file for block in found] == ["x/a.npy", "y/a.npy"]
    assert [list(block.errors) for block in found] == [[0, 1, 2, 3]] * 2
    assert not found[0].known[-1]


BYTES = pa.array([bytes([200 + i] * 16) for i in DOCUMENT], pa.binary(16))


@pytest.mark.parametrize(
    "ids",
    [
        BYTES,
        pa.array(["" if i == 0 else str(i) for i in DOCUMENT]),
        pa.array([f"d{i}" for i in DOCUMENT]).dictionary_encode(),
    ],
    ids=["bytes", "empty text", "dictionary"],
)
def test_an_id_of_any_type_keeps_documents_apart(tmp_path: Path, ids: pa.Array) -> None:
    parquet.write_table(table(doc_id=ids), tmp_path / "a.parquet", row_group_size=37)
    data = opened([tmp_path / "a.parquet"])
    assert data.check_order() == len(LENGTHS)
    codes = [block.errors.get(i, ("",))[0] for block in blocks(data) for i in range(len(block.contexts))]
    assert codes == ["short_document" if position < 4 else "" for position in POSITION]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".npy"])
def test_a_data_set_may_have_more_files_than_a_process_holds_open(tmp_path: Path, suffix: str) -> None:
    for number in range(60):
        rows = slice(5 * number, 5 * number + 5)
        path = tmp_path / f"{number:02}{suffix}"
        if suffix == ".npy":
            np.save(path, VECTORS[rows])
        elif suffix == ".parquet":
            parquet.write_table(table(rows), path)
        else:
            feather.write_feather(table(rows), path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    now = max(int(name) for name in os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (now + 20, limits[1]))
    try:
        data = opened(sorted(tmp_path.iterdir()))
        data.check_order()
        assert sum(len(block) for block in blocks(data)) == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_an_id_of_any_length_takes_its_own_room_and_keeps_its_last_character(tmp_path: Path) -> None:
    ids = np.array(["x" * 1_000_000, *("d" + "\0" * number for number in range(1, len(LENGTHS)))], object)
    parquet.write_table(table(doc_id=pa.array(ids[DOCUMENT])), tmp_path / "a.parquet")
    data = opened([tmp_path / "a.parquet"])
    tracemalloc.start()
    assert data.check_order() == len(LENGTHS)
    found = [row for block in blocks(data) for row in block.good.tolist()]
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == sum(max(length - 4, 0) for length in LENGTHS)
    assert peak_bytes < 60e6, "303 rows as wide as the longest id would take 1.2 GB"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"doc_id": pa.array([[int(i)] for i in DOCUMENT])}, "column doc_id is list<.*>; give text, numbers"),
        ({"position": pa.array([{"a": 1}] * ROWS)}, "column position is struct<.*>; give text, numbers"),
        ({"domain": pa.array([[1]] * ROWS)}, "column domain is list<.*>; give text, numbers or times"),
    ],
    ids=["id", "position", "domain"],
)
def test_a_key_that_is_no_plain_value_is_refused(tmp_path: Path, changes: Any, text: str) -> None:
    parquet.write_table(table(**changes), tmp_path / "a.parquet")
    with pytest.raises(FileRefused, match=text):
        opened([tmp_path / "a.parquet"])


def test_a_position_that_is_no_number_is_refused(tmp_path: Path) -> None:
    parquet.write_table(
        table(position=np.where(POSITION == 5, np.nan, POSITION)), tmp_path / "a.parquet", row_group_size=5
    )
    with pytest.raises(FileRefused, match=r"row 5 has no position \(null or NaN\)"):
        opened([tmp_path / "a.parquet"]).check_order()


@pytest.mark.parametrize("other", [{"position": POSITION.astype("M8[s]")}, {"domain": ["x"] * ROWS}])
def test_files_whose_columns_differ_are_refused(tmp_path: Path, other: Any) -> None:
    parquet.write_table(table(), tmp_path / "a.parquet")
    parquet.write_table(table(**other), tmp_path / "b.parquet")
    with pytest.raises(FileRefused, match=r"column \w+ is .* in .*b.parquet and .* in .*a.parquet"):
        opened([tmp_path / "a.parquet", tmp_path / "b.parquet"])


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    twice = table().append_column("position", pa.array(POSITION))
    parquet.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(FileRefused, match="several columns 'position'"):
        opened([tmp_path / "a.parquet"])


def test_numbers_of_another_byte_order_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VECTORS.astype(">f4"))
    [block] = blocks(opened([tmp_path / "a.npy"]))
    np.testing.assert_array_equal(block.contexts[4], VECTORS[:5])


@pytest.mark.parametrize(
    ("arrays", "array", "text"),
    [
        ({"scalar": 3}, "scalar", r"has shape \(\); expected contexts"),
        ({"x": np.arange(3)}, "", "has no array of vectors; it has x"),
        ({"v": VECTORS, "doc_id": DOCUMENT}, "", "has no column 'position', which documents need"),
    ],
    ids=["a scalar", "no vectors", "ids without positions"],
)
def test_an_archive_that_does_not_hold_what_is_needed_is_refused(
    tmp_path: Path, arrays: Any, array: str, text: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(FileRefused, match=text):
        DataSet.of([sources.open_file(tmp_path / "a.npz", array)], ColumnNames())


def test_an_array_without_the_column_that_was_named_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", v=VECTORS, doc_id=DOCUMENT, position=POSITION)
    with pytest.raises(FileRefused, match="has no column 'document', which documents need"):
        opened([tmp_path / "a.npz"], ColumnNames(document="document"))


def test_an_array_beside_the_vectors_never_takes_their_place(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", v=VECTORS, vector=DOCUMENT, doc_id=DOCUMENT, position=POSITION)
    assert opened([tmp_path / "a.npz"]).form == DOCUMENTS


def test_a_link_is_known_by_its_own_name_and_what_is_no_file_is_refused(tmp_path: Path) -> None:
    parquet.write_table(table(), tmp_path / "0a1b2c")
    (tmp_path / "A.PARQUET").symlink_to("0a1b2c")
    (tmp_path / "gone.npy").symlink_to("nothing")
    (tmp_path / "round.npy").symlink_to("round.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    assert opened(sources.expand([str(tmp_path / "A.*")])).form == DOCUMENTS
    for name in ("gone", "round", "pipe"):
        with pytest.raises(FileRefused, match=name):
            [sources.open_file(path) for path in sources.expand([str(tmp_path / f"{name}.npy")])]


def test_a_folder_is_read_without_hidden_files_also_where_a_glob_names_it(tmp_path: Path) -> None:
    for name in ("in/1/a.npy", "in/1/.b.npy.parts/c.parquet", "in/_old/d.npy", "in/2.parquet/e.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for source in ("in", "in/[12]*"):
        found = sources.expand([str(tmp_path / source)])
        assert [path.name for path in found] == ["a.npy", "e.npy"]
