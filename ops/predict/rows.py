"""The rows of a part: keys of the input, answers, errors, and cosines with the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from amn.errors import FileRefused
from ops.predict.dataset import DataSet
from ops.predict.engines import Answers
from ops.predict.sources import SourceFile
from ops.predict.windows import RowBlock

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
        ("cosine_amn", pa.float32()),
        ("cosine", pa.float32()),
        ("cosine_mean", pa.float32()),
        ("cosine_last", pa.float32()),
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
    count, failures = len(block.contexts), answers.failures
    good = np.array([row not in failures for row in range(count)])
    made: dict[str, Any] = {
        "file": pa.array([block.file] * count),
        "row": pa.array(np.arange(block.first_row, block.first_row + count)),
        "prediction": pa.FixedSizeListArray.from_arrays(
            pa.array(answers.vectors.reshape(-1)), 768, mask=pa.array(~good)
        ),
        "confidence": pa.array(answers.confidences, mask=~good),
        "margin": pa.array(answers.margins, mask=~good),
        "served_by": pa.array(answers.served_by, pa.string(), mask=~good),
        "reasons": pa.array([list(reasons) for reasons in answers.reasons], pa.list_(pa.string())),
        "shed": pa.array(answers.sheds, pa.string()),
        "error_code": pa.array(
            [failures[row][0] if row in failures else None for row in range(count)], pa.string()
        ),
        "error_message": pa.array(
            [failures[row][1] if row in failures else None for row in range(count)], pa.string()
        ),
    }
    made |= cosines(block, answers, good)
    kept = {name: block.kept.column(name) for name in block.kept.schema.names}
    return pa.RecordBatch.from_arrays([({**made, **kept})[name] for name in schema.names], schema=schema)


def cosines(block: RowBlock, answers: Answers, good: NDArray[np.bool_]) -> dict[str, pa.Array]:
    """Return the cosines with the truth of AMN's answer, the final one and both baselines."""
    known, contexts = good & block.known, block.contexts.astype(np.float32)
    truth = block.truth.astype(np.float32)
    length = np.linalg.norm(truth, axis=1)
    known &= np.isfinite(length) & (length > 0)
    truth /= np.where(known, length, 1)[:, None]
    mean = contexts.mean(axis=1)
    mean /= np.maximum(np.linalg.norm(mean, axis=1), 1e-12)[:, None]
    vectors = {
        "cosine_amn": answers.fast,
        "cosine": answers.vectors,
        "cosine_mean": mean,
        "cosine_last": contexts[:, -1],
    }
    return {
        name: pa.array(np.einsum("nd,nd->n", rows, truth, dtype=np.float64).astype(np.float32), mask=~known)
        for name, rows in vectors.items()
    }
