"""A batch prediction from its settings to its summary: what `amn predict` and its job do."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from amn.data.arrays import writing_rows
from amn.errors import FileRefused
from amn.files import check_output
from ops.predict import sources
from ops.predict.columns import ColumnNames
from ops.predict.dataset import CONTEXTS, DataSet
from ops.predict.engines import Engine, QueueEngine, answered
from ops.predict.parts import Target
from ops.predict.report import cosines_by_domain
from ops.predict.rows import part_rows, part_schema
from ops.predict.run import FileRun, Progress
from ops.predict.settings import PredictSettings, check_apart, check_ours
from ops.predict.sources import RowGroup
from ops.predict.truths import TruthReporter, reporting
from producer import Producer, ProducerSettings
from producer.messages import BULK_PRIORITY
from workers.background import yield_to_others


def open_data(settings: PredictSettings) -> DataSet:
    """Open the sources, and check all that can be known before any work.

    Raises:
        FileRefused: A source or the target cannot be used.
    """
    paths, out = sources.expand(settings.sources), Path(settings.out)
    check_apart(settings.sources, paths, settings.out)
    data = open_sources(settings)
    if not data.groups:
        raise FileRefused(f"{', '.join(settings.sources)} hold no rows")
    if settings.report_truth and data.form == CONTEXTS:
        raise FileRefused("--report-truth needs documents: what comes after a context is not known")
    if settings.to_array:
        _check_array_target(settings, data)
    else:
        check_ours(out)
    for file in data.files:
        part_schema(data, file)
    data.check_order()
    return data


def open_sources(settings: PredictSettings) -> DataSet:
    """Open the sources alone: what a process needs that works on row groups of data that were checked.

    Raises:
        FileRefused: A source cannot be read, or is of another form than the others.
    """
    columns = ColumnNames(
        vector=settings.vector,
        document=settings.document,
        position=settings.position,
        domain=settings.domain,
        carried=tuple(settings.carry),
    )
    paths = sources.expand(settings.sources)
    return DataSet.of([sources.open_file(path, settings.array) for path in paths], columns)


def group_rows(
    settings: PredictSettings, data: DataSet, group: RowGroup, engine: Engine
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one part, the same that `predict_files` writes, and keep no book of them.

    For who spreads row groups over machines by other means, and stores the rows there.

    Raises:
        FileRefused: The source cannot be read any more.
    """
    schema = part_schema(data, group.file)
    for block, answers in answered(engine, data.blocks(group), settings.share, settings.normalize):
        yield part_rows(block, answers, schema)


def predict_by_queue(
    service: ProducerSettings,
    settings: PredictSettings,
    data: DataSet,
    on_progress: Callable[[Progress], None],
    on_stall: Callable[[float, str], None],
    partitions: int | None = None,
) -> dict[str, Any]:
    """Predict what is left of a data set by the workers of a service; returns the summary.

    At the level of bulk work this process yields its cores to all others.

    Args:
        on_stall: Is told for how many seconds no answer came, and why.

    Raises:
        FileRefused, RunStopped: As `predict_files`.
        QueueError: The service cannot be used.
    """
    if settings.priority == BULK_PRIORITY:
        yield_to_others()
    if encoder := data.encoder(settings.encoder).encoder_id:
        service = dataclasses.replace(service, encoder=encoder)
    with (
        Producer(settings=service, partitions=partitions) as producer,
        reporting(producer, settings) as truths,
    ):
        return predict_files(settings, data, QueueEngine(producer, settings, on_stall), on_progress, truths)


def predict_files(
    settings: PredictSettings,
    data: DataSet,
    engine: Engine,
    on_progress: Callable[[Progress], None],
    truths: TruthReporter | None = None,
) -> dict[str, Any]:
    """Predict what is left of a data set; returns the summary.

    Args:
        truths: Reports the truths of `settings.report_truth`.

    Raises:
        FileRefused: A source or the target cannot be used any more; what is done stays.
        RunStopped: Too many rows failed, or the workers stopped answering; what is done stays.
    """
    started_s = time.perf_counter()
    folder = _parts_folder(settings)
    array_bytes = sum(group.rows for group in data.groups) * 768 * 4 if settings.to_array else 0
    with Target(folder, settings.shard, array_bytes) as target:
        run = FileRun(data, target, engine, settings, truths)
        run.begin()
        on_progress(run.progress)
        run.work(on_progress)
        summary = _summary(settings, run, time.perf_counter() - started_s)
        if truths is not None:
            summary["truths"] = truths.finish()
        if settings.to_array:
            with writing_rows(Path(settings.out), run.progress.rows, 768, "<f4") as writer:
                for first, values in _predictions(folder):
                    writer.put(slice(first, first + len(values)), values)
            target.clear()
    if settings.to_array:
        folder.rmdir()
    return summary


def _summary(settings: PredictSettings, run: FileRun, elapsed_s: float) -> dict[str, Any]:
    progress, data = run.progress, run.data
    fresh = progress.done - progress.skipped
    return {
        "out": settings.out,
        "form": data.form,
        "rows": progress.rows,
        "answered": progress.done - progress.failed,
        "failed": progress.failed,
        "failures": dict(progress.codes),
        "escalated": progress.escalated,
        "resumed_rows": progress.skipped,
        "elapsed_s": round(elapsed_s, 3),
        "rows_per_s": round(fresh / max(elapsed_s, 1e-9), 1),
        "models": run.manifest.models,
        "answers_of": run.manifest.answers_of(),
        "cosines": cosines_by_domain(run.parts, data.columns.document, data.columns.domain),
    }


def _check_array_target(settings: PredictSettings, data: DataSet) -> None:
    out = Path(settings.out)
    if data.form != CONTEXTS or len(data.files) != 1 or settings.shard:
        raise FileRefused(f"{out}: an .npy target is for one file of contexts without shards; name a folder")
    check_output(out, data.files[0].path)
    if out.exists() and not settings.force:
        raise FileRefused(f"{out} exists; --force replaces it")


def _parts_folder(settings: PredictSettings) -> Path:
    """Return where the parts go; those of an .npy file lie beside it until it is whole."""
    out = Path(settings.out)
    return out.with_name(f".{out.name}.parts") if settings.to_array else out


def _predictions(folder: Path) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """Yield the predictions of all parts, each with the number of its first row; NaN where a row has none."""
    first = 0
    for part in sorted(folder.glob("part-*.parquet")):
        with contextlib.closing(parquet.ParquetFile(part)) as file:
            for batch in file.iter_batches(4096, columns=["prediction"], use_threads=False):
                column = batch.column(0)
                values = (
                    column.values[column.offset * 768 :][: len(column) * 768]
                    .to_numpy()
                    .reshape(-1, 768)
                    .copy()
                )
                values[column.is_null().to_numpy(zero_copy_only=False)] = np.nan
                yield first, values
                first += len(values)
