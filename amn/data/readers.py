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
        DataError: the file is missing, damaged, pickled, or its vectors are unusable; it names
            another encoder than `encoder_id`, or nobody named one.
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
            encoder_id=known_encoder(path, arrays.get("encoder", ""), encoder_id),
        )
    )


def known_encoder(path: Path, stored: Any, given: str) -> str:
    """The encoder that a file names, or else the one that was given for it.

    Raises:
        DataError: They are two, or none is known.
    """
    own = str(stored).strip()
    if own and given and own != given:
        raise DataError(f"{path} holds vectors of encoder {own!r}, not {given!r}; give vectors of that one")
    if not own and not given:
        raise DataError(
            f"{path} does not say which encoder made its vectors; add --encoder, such as {ENCODER_ID}"
        )
    return own or given


def read_folder(path: Path) -> dict[str, Any]:
    """The .npy files of a folder; the vectors stay in theirs."""
    found = {file.stem: FileRows(file) for file in path.glob("*.npy")}
    arrays: dict[str, Any] = {name: rows if name == "vectors" else rows[:] for name, rows in found.items()}
    if (path / "encoder.txt").is_file():
        arrays["encoder"] = (path / "encoder.txt").read_text("utf-8")
    return arrays


def read_table(path: Path) -> dict[str, Any]:
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
    if twice := [name for name in _COLUMNS if table.column_names.count(name) > 1]:
        raise DataError(f"{path} has several columns {', '.join(twice)}; give each a name of its own")
    columns = {name: _column(path, table, name) for name in _COLUMNS if name in table.column_names}
    ids = columns["article"].to_numpy(zero_copy_only=False)
    _, first, article = np.unique(ids, return_index=True, return_inverse=True)
    arrays: dict[str, Any] = {
        "vectors": _table_vectors(path, columns["vector"]),
        "article": article.astype(np.int32),
        "encoder": (table.schema.metadata or {}).get(b"encoder", b"").decode("utf-8", "replace"),
    }
    for name in {"domain", "name"} & set(columns):
        values = columns[name].to_numpy(zero_copy_only=False).astype(np.str_)
        arrays[f"article_{name}"] = values[first]
        if (other := np.flatnonzero(values != values[first][article])).size:
            row, begins = int(other[0]), str(values[first][article[other[0]]])
            raise DataError(
                f"{path}: row {row} has {name} {str(values[row])!r:.80}, and its article begins with "
                f"{begins!r:.80}; give an article one {name}"
            )
    return arrays


def _column(path: Path, table: Any, name: str) -> Any:
    column = table.column(name).combine_chunks()
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{path}: row {row} has no {name} (null); fill it in, or drop the row")
    return column


def _table_vectors(path: Path, column: Any) -> NDArray[Any]:
    """The rows of a column of lists. Each is looked at: a short and a long one would shift those between."""
    import pyarrow as pa
    from pyarrow import compute

    kind = getattr(column.type, "value_type", None)
    if kind is None or not pa.types.is_floating(kind):
        raise DataError(f"{path}: column vector holds {column.type}; store lists of 768 float32 or float16")
    lengths = compute.list_value_length(column).to_numpy(zero_copy_only=False)
    if (wrong := np.flatnonzero(lengths != VECTOR_DIM)).size:
        row = int(wrong[0])
        raise DataError(f"{path}: row {row} holds {lengths[row]} numbers, a vector has {VECTOR_DIM}; mend it")
    flat = column.flatten()
    if flat.null_count:
        place = int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{path}: row {place // VECTOR_DIM} holds a null; fill it in, or drop the row")
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(-1, VECTOR_DIM)
