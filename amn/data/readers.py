"""Reading vector files: .npz, a folder of .npy, Parquet and Arrow. Nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.config import ENCODER_ID, VECTOR_DIM
from amn.data.arrays import FileRows, load_npz
from amn.data.vectors import VectorSet, validate
from amn.errors import DataError

_COLUMNS = ("vector", "article", "domain", "name")
REQUIRED = ("vectors", "article", "article_domain")


def read_vectors(path: Path, encoder_id: str = "") -> VectorSet:
    """Read and check a vector file.

    Args:
        encoder_id: The encoder that made the vectors; "" where the file itself must say it.

    | path | what it must hold |
    |---|---|
    | `x.npz` | vectors (N, 768), article (N,), article_domain; optional article_name, encoder |
    | folder | the same as `vectors.npy`, `article.npy`, ..., and the encoder as `encoder.txt` |
    | `x.parquet`, `x.arrow` | columns vector (list of 768), article, domain, optional name; \
encoder in the metadata of the schema |

    Raises:
        DataError: The file is missing, damaged, pickled, or its vectors are unusable; it names
            another encoder than `encoder_id`, or nobody named one.
    """
    arrays = _arrays(path)
    if missing := [name for name in REQUIRED if name not in arrays]:
        raise DataError(f"{path} lacks {', '.join(missing)}; it has {', '.join(sorted(arrays))}")
    domain = np.asarray(arrays["article_domain"]).astype(np.str_)
    return validate(
        VectorSet(
            vectors=arrays["vectors"],
            article=arrays["article"],
            article_domain=domain,
            article_name=np.asarray(arrays.get("article_name", domain)).astype(np.str_),
            source=path.name,
            encoder_id=known_encoder(path, arrays.get("encoder", ""), encoder_id),
        )
    )


def _arrays(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise DataError(f"{path} does not exist; give a .npz, a folder of .npy, or Parquet")
    try:
        if path.is_dir():
            return _read_folder(path)
        if path.suffix == ".npz":
            return load_npz(path, lazy=("vectors",))
        if path.suffix in (".parquet", ".arrow", ".feather"):
            return _read_table(path)
    except (ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); it is damaged, write it again") from error
    raise DataError(f"{path}: unknown suffix {path.suffix!r}; use .npz, .parquet, .arrow")


def known_encoder(path: Path, stored: Any, given: str) -> str:
    """The encoder that a file names, or else the one that was given for it; refuses two, or none."""
    own = str(stored).strip()
    if own and given and own != given:
        raise DataError(f"{path} holds vectors of encoder {own!r}, not {given!r}; give vectors of that one")
    if not own and not given:
        raise DataError(
            f"{path} does not say which encoder made its vectors; add --encoder, such as {ENCODER_ID}"
        )
    return own or given


def _read_folder(path: Path) -> dict[str, Any]:
    """The .npy files of a folder; the vectors stay in theirs."""
    arrays: dict[str, Any] = {file.stem: FileRows(file) for file in path.glob("*.npy")}
    arrays = {name: rows if name == "vectors" else rows[:] for name, rows in arrays.items()}
    if (path / "encoder.txt").is_file():
        arrays["encoder"] = (path / "encoder.txt").read_text("utf-8")
    return arrays


def _read_table(path: Path) -> dict[str, Any]:
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
    names = [name for name in table.column_names if name in _COLUMNS]
    if missing := {"vector", "article", "domain"} - set(names):
        raise DataError(f"{path} lacks the columns {', '.join(sorted(missing))}")
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{path} has several columns {', '.join(twice)}; give each a name of its own")
    columns = {name: table.column(name).combine_chunks() for name in names}
    for name, column in columns.items():
        if column.null_count:
            raise DataError(f"{path}: row {_first(column.is_null())} has no {name} (null); mend or drop it")
    _, first, article = np.unique(_values(columns["article"]), return_index=True, return_inverse=True)
    arrays: dict[str, Any] = {
        "vectors": _table_vectors(path, columns["vector"]),
        "article": article.astype(np.int32),
        "encoder": (table.schema.metadata or {}).get(b"encoder", b"").decode("utf-8", "replace"),
    }
    for name in {"domain", "name"} & set(columns):
        values = _values(columns[name]).astype(np.str_)
        own = values[first][article]
        if (other := np.flatnonzero(values != own)).size:
            row, begins = other[0], str(own[other[0]])
            raise DataError(
                f"{path}: row {row} has {name} {str(values[row])!r:.80}, and its article begins with "
                f"{begins!r:.80}; give an article one {name}"
            )
        arrays[f"article_{name}"] = values[first]
    return arrays


def _table_vectors(path: Path, column: Any) -> NDArray[Any]:
    """The rows of a column of lists. Each is checked: a short and a long one would shift those between."""
    from pyarrow import compute, types

    kind = getattr(column.type, "value_type", None)
    if kind is None or not types.is_floating(kind):
        raise DataError(f"{path}: column vector holds {column.type}; store lists of 768 float32 or float16")
    lengths = _values(compute.list_value_length(column))
    if (wrong := np.flatnonzero(lengths != VECTOR_DIM)).size:
        row = wrong[0]
        raise DataError(f"{path}: row {row} holds {lengths[row]} numbers, a vector has {VECTOR_DIM}; mend it")
    flat = column.flatten()
    if flat.null_count:
        row = _first(flat.is_null()) // VECTOR_DIM
        raise DataError(f"{path}: row {row} holds a null; fill it in, or drop the row")
    return _values(flat).reshape(-1, VECTOR_DIM)


def _values(column: Any) -> NDArray[Any]:
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _first(mask: Any) -> int:
    return int(np.flatnonzero(_values(mask))[0])
