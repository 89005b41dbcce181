"""Arrays in files: read where they lie, written in any order, and refused with the name of the file.

Inputs are not mapped: whoever shortens a mapped file ends its reader by a signal, without a word. They
are read piece by piece, and a piece that is not there any more is an error. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import stat
import tokenize
import weakref
import zipfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import DTypeLike, NDArray

from amn.errors import FileRefused
from amn.files import writing

#: A member that unpacks to more than this, and to so many times what is stored, holds no vectors.
_UNPACKED_BYTES_MAX, _UNPACKED_TIMES_MAX = 1 << 26, 100
#: A stored member is left in its file from this size on.
_LAZY_BYTES_MIN = 1 << 20
_LOCAL_HEADER_BYTES = 30


class FileRows:
    """The rows of an .npy file, or of a member of an .npz that is not compressed."""

    def __init__(self, path: Path, member: zipfile.ZipInfo | None = None) -> None:
        """Opens the array; refuses one that is cut, or holds something else than plain numbers in C order."""
        self._path = path
        with _named(path, "as an .npy file"):
            self._file = _opened(path)
            weakref.finalize(self, self._file.close)
            if member is not None:
                _skip_local_header(self._file, member)
            elif self._file.read(4) == b"PK\x03\x04":
                raise ValueError("it is an archive; give one array saved with np.save")
            else:
                self._file.seek(0)
            self.shape, fortran, self.dtype = _header(self._file)
            self.ndim, self._offset = len(self.shape), self._file.tell()
            self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
            size = os.fstat(self._file.fileno()).st_size
            end = self._offset + math.prod(self.shape) * self.dtype.itemsize
            if fortran and self.ndim > 1:
                raise ValueError("it is stored in Fortran order; save np.ascontiguousarray(array)")
            if end > size:
                raise ValueError(
                    f"its header promises {self.shape} {self.dtype}, {end:,} bytes, and it has {size:,}: it "
                    "is cut short, or still being written"
                )

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def __getitem__(self, rows: slice | NDArray[np.integer] | int) -> NDArray[Any]:
        """Some rows, as an array of their own; refuses those that are not in the file any more."""
        index = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows, np.intp)
        index = np.where(index < 0, index + len(self), index)
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"rows {index.min()} to {index.max()} of {len(self)}")
        flat = index.ravel()
        found = np.empty((flat.size, *self.shape[1:]), dtype=self.dtype)
        for start, end in _runs(flat):
            part = found[start:end].reshape(-1).view(np.uint8).data
            with _named(self._path, "to its end"):
                self._file.seek(self._offset + int(flat[start]) * self._row_bytes)
                if self._file.readinto(part) < len(part):
                    raise FileRefused(
                        f"{self._path} became shorter while it was read; run it again when it is complete"
                    )
        return found.reshape((*index.shape, *self.shape[1:]))


#: Rows in memory or in a file.
Rows = FileRows | NDArray[Any]


class RowsWriter:
    """Puts rows into an .npy file in any order."""

    def __init__(self, file: IO[bytes], dtype: np.dtype[Any], width: int) -> None:
        self._file, self._offset, self._dtype, self._width = file, file.tell(), dtype, width

    def put(self, rows: slice | list[int], values: NDArray[Any] | float) -> None:
        """Values for some rows; a number fills them."""
        index = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else np.asarray(rows, np.intp)
        shape = (len(index), self._width)
        block = np.ascontiguousarray(np.broadcast_to(np.asarray(values, dtype=self._dtype), shape))
        for start, end in _runs(index):
            self._file.seek(self._offset + int(index[start]) * self._width * self._dtype.itemsize)
            self._file.write(block[start:end].data)


def _runs(index: NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """Stretches of an index whose rows follow each other in the file: read or written at once."""
    edges = [0, *(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), index.size]
    return ((start, end) for start, end in itertools.pairwise(edges) if end > start)


@contextlib.contextmanager
def writing_rows(path: Path, count: int, width: int, dtype: DTypeLike) -> Iterator[RowsWriter]:
    """An .npy file of shape (count, width), its room reserved; it appears when the block ends well."""
    kind, header = np.dtype(dtype), io.BytesIO()
    content = {"descr": npy_format.dtype_to_descr(kind), "fortran_order": False, "shape": (count, width)}
    npy_format.write_array_header_1_0(header, content)
    with writing(path, room=header.tell() + count * width * kind.itemsize) as file:
        file.write(header.getvalue())
        yield RowsWriter(file, kind, width)


def load_npz(path: Path, names: Container[str] | None = None, *, lazy: Container[str] = ()) -> dict[str, Any]:
    """Arrays of an .npz; refuses one that is damaged, holds objects, or unpacks as no file of vectors does.

    Args:
        names: Those that are wanted; None for all.
        lazy: Those that stay in the file, as `FileRows`, where they are large and not compressed.
    """
    found: dict[str, Any] = {}
    with _named(path, "as an .npz file"), _opened(path) as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if names is None or name in names:
                found[name] = _member(path, archive, member, lazily=name in lazy)
    return found


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, *, lazily: bool) -> Any:
    with archive.open(member) as stream:
        shape, fortran, dtype = _header(stream)
        need = math.prod(shape) * dtype.itemsize
        if stream.tell() + need != member.file_size:
            raise ValueError(
                f"{member.filename} promises {shape} {dtype} and holds {member.file_size:,} bytes"
            )
        stored = member.compress_type == zipfile.ZIP_STORED
        if lazily and stored and not fortran and need >= _LAZY_BYTES_MIN:
            return FileRows(path, member)
        if need > max(_UNPACKED_BYTES_MAX, _UNPACKED_TIMES_MAX * member.compress_size):
            raise ValueError(
                f"{member.filename} unpacks {member.compress_size:,} bytes to {need:,}: no vectors do"
            )
        data = bytearray(stream.read())  # of its own, so that the array can be written to
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def _skip_local_header(file: IO[bytes], member: zipfile.ZipInfo) -> None:
    """Goes to a stored member's bytes; its name and extra field may be longer than in the directory."""
    file.seek(member.header_offset)
    local = file.read(_LOCAL_HEADER_BYTES)
    name, extra = (int.from_bytes(local[at : at + 2], "little") for at in (26, 28))
    file.seek(name + extra, os.SEEK_CUR)


def _opened(path: Path) -> io.BufferedReader:
    """Opens a regular file: a FIFO would be waited for, and a device has no end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    return path.open("rb")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    first = npy_format.read_magic(stream) == (1, 0)
    read = npy_format.read_array_header_1_0 if first else npy_format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(stream)
    except (SyntaxError, tokenize.TokenError) as error:
        raise ValueError("its header is damaged") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded; save plain numbers")
    if any(length < 0 for length in shape):
        raise ValueError(f"its header promises the shape {shape}")
    return shape, fortran, dtype


@contextlib.contextmanager
def _named(path: Path, what: str) -> Iterator[None]:
    """Names the file, whatever goes wrong: a damaged header or archive raises almost anything."""
    try:
        yield
    except FileRefused:
        raise
    except Exception as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise FileRefused(f"{path} cannot be read {what}: {' '.join(why.split())}") from error
