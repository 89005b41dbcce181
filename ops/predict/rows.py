"""The rows of a part: keys of the input, answers, errors, and cosines with the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from amn.errors import FileRefused
from ops.predict.answers import Answers
from ops.predict.dataset import DataSet
from ops.predict.report import COSINES
from ops.predict.sources import SourceFile
from ops.predict.windows import K, RowBlock

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("prediction", pa.list_(pa.float32(), 768)),
        ("confidence", pa.float32()),
        ("margin", pa.float32()),
        ("served_by", pa.string()),
        ("reasons", pa.list_(pa.string())),
        ("shed", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        *((name, pa.float32()) for name in COSINES),
    ]
)


def part_schema(data: DataSet, file: SourceFile) -> pa.Schema:
    """Return the columns of a part: the keys of the input, then ours."""
    kept = [file.schema.field(name) for name in data.kept_names(file)]
    named = [pa.field("file", pa.string())] if len(data.files) > 1 else []
    own = [*named, *SCHEMA]
    if taken := {field.name for field in kept} & {field.name for field in own}:
        raise FileRefused(
            f"{file.path}: the target has a column of its own named {' and '.join(sorted(taken))}; rename "
            "yours, or do not carry it"
        )
    return pa.schema([*kept, *own])


def part_rows(block: RowBlock, answers: Answers, schema: pa.Schema) -> pa.RecordBatch:
    """Return the rows of a part."""
    count, failures = len(block), answers.failures
    whys = np.full((2, count), None, object)
    for row, why in failures.items():
        whys[:, row] = why
    bad = whys[0] != None  # noqa: E711
    made: dict[str, Any] = {
        "file": pa.array([block.file] * count),
        "row": pa.array(np.arange(block.first_row, block.first_row + count)),
        "prediction": pa.FixedSizeListArray.from_arrays(
            pa.array(answers.vectors.reshape(-1)), 768, mask=pa.array(bad)
        ),
        "confidence": pa.array(answers.confidences, mask=bad),
        "margin": pa.array(answers.margins, mask=bad),
        "served_by": pa.array(answers.served_by, pa.string(), mask=bad),
        "reasons": pa.array(answers.reasons, pa.list_(pa.string())),
        "shed": pa.array(answers.sheds, pa.string()),
        "error_code": pa.array(whys[0], pa.string()),
        "error_message": pa.array(whys[1], pa.string()),
    }
    made |= cosines(block, answers, ~bad)
    kept = {name: block.kept.column(name) for name in block.kept.schema.names}
    return pa.RecordBatch.from_arrays([({**made, **kept})[name] for name in schema.names], schema=schema)


def cosines(block: RowBlock, answers: Answers, good: NDArray[np.bool_]) -> dict[str, pa.Array]:
    """Return the cosines with the truth of AMN's answer, the final one and both baselines."""
    known = good & block.known
    if not known.any():
        return dict.fromkeys(COSINES, pa.nulls(len(block), pa.float32()))
    truth = block.beside(block.wide, 1)
    total = sum(block.beside(block.wide, -step) for step in range(K))
    with np.errstate(all="ignore"):  # a truth may be anything
        length = np.sqrt(np.vecdot(truth, truth))
        known &= np.isfinite(length) & (length > 0)
        final = np.vecdot(answers.vectors, truth)
        amn = final.copy()
        amn[answers.taken] = np.vecdot(answers.fast, truth[answers.taken])
        mean = np.vecdot(total, truth) / np.maximum(np.sqrt(np.vecdot(total, total)), 1e-12)
        found = amn, final, mean, np.vecdot(block.beside(block.wide, 0), truth)
        return {
            name: pa.array(column / length, mask=~known) for name, column in zip(COSINES, found, strict=True)
        }
