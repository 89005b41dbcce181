"""The files of a data set as row groups, read piece by piece: .npy, .npz, Parquet, Arrow and Feather.

A row group is the unit of resuming and of sharding: a row group of a Parquet file, a record batch of an Arrow
file, or 16,384 rows of an array. A file is opened anew for each row group, since a data set may have more
files than a process may hold open.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from amn.data.arrays import FileRows, load_npz
from amn.errors import FileRefused

ARRAY_GROUP_ROWS = 16_384
#: So many batches of 1,024 rows of the first and of the last row group tell one input from another.
_HASHED_BATCHES = 16
_ARRAYS, _PARQUET, _ARROW = {".npy", ".npz"}, {".parquet", ".pq"}, {".arrow", ".feather", ".ipc"}
SUFFIXES = _ARRAYS | _PARQUET | _ARROW
#: The names of an array of the form (N, ...), which has none.
VECTOR, CONTEXT = "vector", "context"


class SourceFile(Protocol):
    """A file of rows.

    Attributes:
        path: Its path.
        schema: Names and types of its columns.
        groups: The rows of each row group.
    """

    path: Path
    schema: pa.Schema
    groups: list[int]

    def batches(self, group: int, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Yield a row group's columns in pieces of at most so many rows.

        Raises:
            FileRefused: It cannot be read any more.
        """
        ...


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of a data set.

    Attributes:
        number: In the data set, from 0.
        file, in_file: Which file it is of, and its number there.
        name: Of the file, under the folder that all files share.
        first_row, rows: Of the file.
    """

    number: int
    file: SourceFile
    in_file: int
    name: str
    first_row: int
    rows: int


def expand(sources: Sequence[str], suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """Return the files that paths, folders and globs name, each once; those of a folder or glob by name.

    Raises:
        FileRefused: One names nothing, or a file of another suffix.
    """
    found: dict[str, Path] = {}
    known = ", ".join(sorted(suffixes))
    for source in sources:
        named = [Path(source)] if Path(source).exists() else map(Path, glob.glob(source, recursive=True))
        paths = [
            path for one in sorted(named) for path in (_inside(one, suffixes) if one.is_dir() else [one])
        ]
        if not paths:
            raise FileRefused(f"{source} names no file; give a file, a folder or a glob of {known}")
        for one in paths:
            if suffix_of(one) not in suffixes:
                raise FileRefused(f"{one} has the suffix {one.suffix!r}; known are {known}")
            found.setdefault(os.path.realpath(one), Path(os.path.abspath(one)))
    return list(found.values())


def suffix_of(path: Path) -> str:
    """Return what tells the kind of a file; a link is named as its user named it."""
    return path.suffix.lower()


def _inside(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files of a folder by name; names that begin with . or _ are left out, as readers do."""
    return sorted(
        path
        for path in folder.rglob("*")
        if suffix_of(path) in suffixes
        and path.is_file()
        and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    )


def open_file(path: Path, array: str = "") -> SourceFile:
    """Open a file of rows.

    Args:
        path: Its path.
        array: The array of vectors in an .npz that has several.

    Raises:
        FileRefused: It is missing, empty, cut short, damaged, or of an unknown kind.
    """
    suffix = suffix_of(path)
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise FileRefused(f"{path} is no regular file")
        if not state.st_size:
            raise FileRefused(f"{path} is empty")
        if suffix in _ARRAYS:
            return ArrayFile(path, array)
        return ParquetFile(path) if suffix in _PARQUET else ArrowFile(path)
    except (pa.ArrowException, OSError) as error:
        hint = "; a stream of Arrow is no file: write one with pyarrow.ipc.new_file" * (suffix in _ARROW)
        raise FileRefused(f"{path} cannot be read as {suffix[1:]}: {_line(error)}{hint}") from error


def row_groups(files: Sequence[SourceFile]) -> list[RowGroup]:
    """Return all row groups of the files, in order; those without rows are left out."""
    found: list[RowGroup] = []
    folder = os.path.commonpath([file.path.parent for file in files])
    for file in files:
        first, name = 0, file.path.relative_to(folder).as_posix()
        for in_file, rows in enumerate(file.groups):
            if rows:
                found.append(RowGroup(len(found), file, in_file, name, first, rows))
            first += rows
    return found


def state_of(path: Path) -> tuple[int, int]:
    """Return size and time of a file: what changes when it is written.

    Raises:
        FileRefused: It is gone.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise FileRefused(f"{path} is gone: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns


def identity(file: SourceFile) -> dict[str, Any]:
    """Return what tells another input: size, time, and a hash of schema and of first and last row group."""
    size, mtime_ns = state_of(file.path)
    digest = hashlib.sha256(str(file.schema).encode())
    for group in sorted({0, len(file.groups) - 1}) if file.groups else ():
        for batch in itertools.islice(file.batches(group, file.schema.names, 1024), _HASHED_BATCHES):
            digest.update(batch.serialize())
    return {
        "path": str(file.path),
        "bytes": size,
        "mtime_ns": mtime_ns,
        "rows": int(sum(file.groups)),
        "groups": len(file.groups),
        "sha256": digest.hexdigest(),
    }


class ArrayFile:
    """An .npy file, or the arrays of an .npz that have one row each: `vector` or `context` and others."""

    def __init__(self, path: Path, array: str = "") -> None:
        self.path = path
        self._array = array
        arrays = self._opened()
        #: Members of an archive stay: they may be compressed, and lie in memory then.
        self._arrays = arrays if suffix_of(path) == ".npz" else {}
        length = len(next(iter(arrays.values())))
        full, rest = divmod(length, ARRAY_GROUP_ROWS)
        self.groups = [ARRAY_GROUP_ROWS] * full + [rest] * bool(rest)
        self.schema = pa.schema([(name, _arrow(rows[:1]).type) for name, rows in arrays.items()])

    def _opened(self) -> dict[str, Any]:
        if suffix_of(self.path) == ".npz":
            return self._members(self.path, self._array)
        rows = FileRows(self.path)
        return {_form(self.path, rows.shape): rows}

    @staticmethod
    def _members(path: Path, array: str) -> dict[str, Any]:
        members = load_npz(path, lazy=_Everything())
        shaped = {name: one for name, one in members.items() if np.ndim(one) > 1 or isinstance(one, FileRows)}
        wide = [name for name, one in shaped.items() if one.shape[-1] == 768]
        if array and array not in members:
            raise FileRefused(f"{path} has no array {array!r}; it has {', '.join(members)}")
        if not array and not wide:
            raise FileRefused(f"{path} has no array of vectors; it has {', '.join(members) or 'nothing'}")
        if not array and len(wide) > 1:
            raise FileRefused(
                f"{path} has {len(wide)} arrays of vectors ({', '.join(wide)}); name one with --array"
            )
        vectors = members.pop(array or wide[0])
        form = _form(path, np.shape(vectors))
        beside = {key: one for key, one in members.items() if np.shape(one) == (len(vectors),)}
        return {**beside, form: vectors}

    def batches(self, group: int, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Yield a row group in pieces."""
        arrays, start = self._arrays or self._opened(), group * ARRAY_GROUP_ROWS
        end = start + self.groups[group]
        for first in range(start, end, rows):
            last = min(first + rows, end)
            yield pa.RecordBatch.from_pydict({name: _arrow(arrays[name][first:last]) for name in names})


class ParquetFile:
    """A Parquet file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as file:
            self.schema, self._metadata = file.schema_arrow, file.metadata
        groups = range(self._metadata.num_row_groups)
        self.groups = [self._metadata.row_group(i).num_rows for i in groups]

    def _opened(self, **how: Any) -> parquet.ParquetFile:
        return parquet.ParquetFile(self.path, memory_map=False, pre_buffer=False, **how)

    def batches(self, group: int, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Yield a row group in pieces."""
        try:
            with self._opened(metadata=self._metadata) as file:
                yield from file.iter_batches(rows, [group], list(names), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise FileRefused(f"{self.path}, row group {group} cannot be read: {_line(error)}") from error


class ArrowFile:
    """An Arrow file, which Feather is too; a record batch is a row group."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with pa.OSFile(str(path)) as file:
            reader = pa.ipc.open_file(file)
            self.schema = reader.schema
            self.groups = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]

    def batches(self, group: int, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Yield a row group in pieces."""
        try:
            with pa.OSFile(str(self.path)) as file:
                whole = pa.ipc.open_file(file).get_batch(group).select(list(names))
        except (pa.ArrowException, OSError) as error:
            raise FileRefused(f"{self.path}, record batch {group} cannot be read: {_line(error)}") from error
        for first in range(0, whole.num_rows, rows):
            yield whole.slice(first, rows)


class _Everything:
    def __contains__(self, _: object) -> bool:
        return True


def _form(path: Path, shape: tuple[int, ...]) -> str:
    if shape[1:] == (768,):
        return VECTOR
    if shape[1:] == (5, 768):
        return CONTEXT
    raise FileRefused(f"{path} has shape {shape}; expected contexts (N, 5, 768) or vectors (N, 768)")


def _arrow(rows: NDArray[Any]) -> pa.Array:
    """Return rows of an array as an Arrow column, without a copy where the byte order is this machine's."""
    rows = rows.astype(rows.dtype.newbyteorder("="), copy=False)
    if rows.ndim == 1:
        return pa.array(rows)
    flat = np.ascontiguousarray(rows).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), int(np.prod(rows.shape[1:])))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
