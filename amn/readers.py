"""Reading vector files: .npz, a folder of .npy, Parquet and Arrow. Nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.arrays import FileRows, load_npz
from amn.errors import DataError
from amn.vectors import VectorSet, validate

REQUIRED = ("vectors", "article", "article_domain")


def read_vectors(path: Path) -> VectorSet:
    """Read and check a vector file.

    | path | what it must hold |
    |---|---|
    | `x.npz` | vectors (N, 768), article (N,), article_domain, optional article_name |
    | folder | the same as `vectors.npy`, `article.npy`, ...; the vectors are never read whole |
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
            arrays = load_npz(path, lazy=("vectors",))
        else:
            raise DataError(f"{path}: unknown suffix {path.suffix!r}; use .npz, .parquet, .arrow")
    except (ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); it is damaged, write it again") from error
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


def read_folder(path: Path) -> dict[str, Any]:
    """The .npy files of a folder; the vectors stay in theirs."""
    found = {file.stem: FileRows(file) for file in path.glob("*.npy")}
    return {name: rows if name == "vectors" else rows[:] for name, rows in found.items()}


def read_table(path: Path) -> dict[str, NDArray[Any]]:
    """Columns of a Parquet or Arrow file; needs pyarrow, which nothing else here does."""
    try:
        import pyarrow as pa
        from pyarrow import feather, parquet
    except ImportError as error:
        raise DataError(f"{path} needs pyarrow; pip install pyarrow, or convert to .npz") from error
    read = parquet.read_table if path.suffix == ".parquet" else feather.read_table
    try:
        table = read(path, memory_map=False)
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
