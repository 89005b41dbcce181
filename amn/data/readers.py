"""Reading vector files: .npz, a folder of .npy, Parquet and Arrow. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.config import ENCODER_ID, VECTOR_DIM
from amn.data.arrays import FileRows, load_npz
from amn.data.vectors import WINDOW, VectorSet, validate
from amn.errors import DataError
from amn.manifest import EncoderName, check_one_encoder

#: Columns of a table; documents have the names that `amn predict` knows too.
_COLUMNS = ("vector", "article", "domain", "name")
_DOCUMENT, _POSITION = "doc_id", "position"
_PARQUET, _ARROW = (".parquet", ".pq"), (".arrow", ".feather", ".ipc")
REQUIRED = ("vectors", "article", "article_domain")


def read_vectors(path: Path, encoder_id: str = "") -> VectorSet:
    """Read and check a vector file.

    Args:
        encoder_id: The encoder that made the vectors; "" where the file itself must say it.

    | path | what it must hold |
    |---|---|
    | `x.npz` | vectors (N, 768), article (N,), article_domain; optional article_name, article_side, encoder |
    | folder | the same as `vectors.npy`, `article.npy`, ..., and the encoder as `encoder.txt` |
    | `x.parquet`, `x.arrow` | columns vector (list of 768), article, domain, optional name; \
encoder in the metadata of the schema |
    | the same, or a folder of Parquet parts | columns vector, doc_id, domain, optional position |

    The last ones hold documents, as `amn data encode` writes and `amn predict` reads them: those too short
    for a window are left out.

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
            encoder_sha256=str(arrays.get("encoder_sha256", "")).strip(),
            article_side=np.asarray(arrays.get("article_side", [])).astype(np.str_),
        )
    )


def _arrays(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise DataError(f"{path} does not exist; give a .npz, a folder of .npy, or Parquet")
    try:
        if path.is_dir():
            parts = sorted(one for one in path.glob("[!._]*") if one.suffix in _PARQUET)
            return _read_tables(path, parts) if parts else _read_folder(path)
        if path.suffix == ".npz":
            return load_npz(path, lazy=("vectors",))
        if path.suffix in _PARQUET + _ARROW:
            return _read_tables(path, [path])
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
    texts = {name: path / f"{name}.txt" for name in ("encoder", "encoder_sha256")}
    return arrays | {name: file.read_text("utf-8") for name, file in texts.items() if file.is_file()}


def _read_tables(path: Path, parts: list[Path]) -> dict[str, Any]:
    """Columns of Parquet or Arrow files of one form."""
    table, encoder = _table(path, parts)
    if documents := "article" not in table.column_names and _DOCUMENT in table.column_names:
        table = table.rename_columns({_DOCUMENT: "article"})
    names = [name for name in table.column_names if name in (*_COLUMNS, _POSITION)]
    if missing := {"vector", "article", "domain"} - set(names):
        raise DataError(f"{path} lacks the columns {', '.join(sorted(missing))}")
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{path} has several columns {', '.join(twice)}; give each a name of its own")
    columns = {name: table.column(name).combine_chunks() for name in names}
    for name, column in columns.items():
        if column.null_count:
            raise DataError(f"{path}: row {_first(column.is_null())} has no {name} (null); mend or drop it")
    ids, first, article = np.unique(_values(columns["article"]), return_index=True, return_inverse=True)
    arrays: dict[str, Any] = {
        "vectors": _table_vectors(path, columns["vector"]),
        "article": article.astype(np.int32),
        "encoder": encoder.encoder_id,
        "encoder_sha256": encoder.encoder_sha256,
    }
    if documents:
        arrays["article_name"] = ids.astype(np.str_)
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
    if _POSITION in columns:
        _check_positions(path, article, _values(columns[_POSITION]))
    return _with_windows(arrays) if documents else arrays


def _table(path: Path, parts: list[Path]) -> tuple[Any, EncoderName]:
    """The rows of all parts, and their encoder; needs pyarrow, which nothing else here does."""
    try:
        import pyarrow as pa
        from pyarrow import feather, parquet
    except ImportError as error:
        raise DataError(f"{path} needs pyarrow; pip install pyarrow, or convert to .npz") from error
    read = parquet.read_table if parts[0].suffix in _PARQUET else feather.read_table
    try:
        tables = [read(part, memory_map=False) for part in parts]
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    found = {
        str(part): encoder_of(one.schema.metadata or {}) for part, one in zip(parts, tables, strict=True)
    }
    check_one_encoder(found)
    return table, max(found.values())


def encoder_of(metadata: Mapping[bytes, bytes]) -> EncoderName:
    """Return the encoder that the metadata of a schema names."""
    stored = (metadata.get(name, b"") for name in (b"encoder", b"encoder_sha256"))
    return EncoderName(*(value.decode("utf-8", "replace") for value in stored))


def _check_positions(path: Path, article: NDArray[Any], position: NDArray[Any]) -> None:
    falling = (article[1:] == article[:-1]) & ~(position[1:] > position[:-1])
    if falling.any():
        row = int(np.argmax(falling)) + 1
        raise DataError(
            f"{path}: row {row} has position {position[row]} after {position[row - 1]} in its document; sort "
            f"the rows by {_DOCUMENT} and {_POSITION}"
        )


def _with_windows(arrays: dict[str, Any]) -> dict[str, Any]:
    """The documents that are long enough for a window; the others teach nothing, and are no fault."""
    article = arrays["article"]
    long = np.bincount(article) >= WINDOW
    rows, number = long[article], np.cumsum(long, dtype=np.int32) - 1
    found = {name: values[long] for name, values in arrays.items() if name.startswith("article_")}
    return arrays | found | {"vectors": arrays["vectors"][rows], "article": number[article[rows]]}


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
