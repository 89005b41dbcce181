"""Reading vector files: .npz, a folder of .npy, Parquet and Arrow. Nothing is unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from amn.errors import DataError
from amn.vectors import VectorSet, validate

REQUIRED = ("vectors", "article", "article_domain")
LOCAL_HEADER_BYTES = 30


def read_vectors(path: Path) -> VectorSet:
    """Read and check a vector file.

    | path | what it must hold |
    |---|---|
    | `x.npz` | vectors (N, 768), article (N,), article_domain, optional article_name |
    | folder | the same as `vectors.npy`, `article.npy`, ...; mapped, never read whole |
    | `x.parquet`, `x.arrow` | columns vector (list of 768), article, domain, optional name |

    Raises:
        DataError: the file is missing, damaged, pickled, or its vectors are unusable.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; give a .npz, a folder of .npy, or Parquet")
    try:
        if path.is_dir():
            arrays = read_folder(path)
        elif path.suffix in (".parquet", ".arrow", ".feather"):
            arrays = read_table(path)
        elif path.suffix == ".npz":
            arrays = read_npz(path)
        else:
            raise DataError(f"{path}: unknown suffix {path.suffix!r}; use .npz, .parquet, .arrow")
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read ({error}); it is damaged or holds pickled objects, which "
            "are never loaded. Write it again with np.savez and plain arrays"
        ) from error
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it has {', '.join(sorted(arrays))}")
    domain = np.asarray(arrays["article_domain"]).astype(np.str_)
    name = arrays.get("article_name")
    names = np.asarray(name).astype(np.str_) if name is not None else domain
    return validate(
        VectorSet(
            vectors=arrays["vectors"],
            article=arrays["article"],
            article_domain=domain,
            article_name=names,
            source=path.name,
        )
    )


def read_folder(path: Path) -> dict[str, NDArray[Any]]:
    """Memory-map every .npy file of a folder."""
    return {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in path.glob("*.npy")}


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz; members stored without compression are mapped, not copied."""
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as plain:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            mapped = map_member(path, archive, member)
            arrays[name] = plain[name] if mapped is None else mapped
    return arrays


def map_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any] | None:
    """Map one member in place, or None when it is compressed, small, or not C-ordered."""
    if member.compress_type != zipfile.ZIP_STORED or member.file_size < 1 << 20:
        return None
    with archive.open(member) as stream:
        version = npy_format.read_magic(stream)
        read_header = {(1, 0): npy_format.read_array_header_1_0}.get(
            version, npy_format.read_array_header_2_0
        )
        shape, fortran, dtype = read_header(stream)
        header_bytes = stream.tell()
    if fortran or dtype.hasobject:
        return None
    with path.open("rb") as raw:
        raw.seek(member.header_offset)
        local = raw.read(LOCAL_HEADER_BYTES)
    # Lengths of the name and of the extra field, which may differ from the directory's.
    name_bytes = int.from_bytes(local[26:28], "little")
    extra_bytes = int.from_bytes(local[28:30], "little")
    offset = member.header_offset + LOCAL_HEADER_BYTES + name_bytes + extra_bytes + header_bytes
    if offset + dtype.itemsize * int(np.prod(shape)) > path.stat().st_size:
        raise DataError(f"{path} is truncated inside {member.filename}; copy it again")
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)


def read_table(path: Path) -> dict[str, NDArray[Any]]:
    """Columns of a Parquet or Arrow file; needs pyarrow, which nothing else here does."""
    try:
        import pyarrow as pa
        from pyarrow import feather, parquet
    except ImportError as error:
        raise DataError(f"{path} needs pyarrow; pip install pyarrow, or convert to .npz") from error
    read = parquet.read_table if path.suffix == ".parquet" else feather.read_table
    try:
        table = read(path, memory_map=True)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    missing = {"vector", "article", "domain"} - set(table.column_names)
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(sorted(missing))}")
    column = table.column("vector").combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    vectors = flat.reshape(len(column), -1)
    _, first, article = np.unique(table.column("article").to_numpy(), return_index=True, return_inverse=True)
    arrays = {
        "vectors": vectors,
        "article": article.astype(np.int32),
        "article_domain": table.column("domain").to_numpy()[first].astype(np.str_),
    }
    if "name" in table.column_names:
        arrays["article_name"] = table.column("name").to_numpy()[first].astype(np.str_)
    return arrays
