"""`amn predict`: a file of contexts to a file of vectors."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from amn.files import check_output
from ops import console
from ops.commands import options
from ops.errors import RowsFailed
from ops.files import DirectProducer, FileOptions, FileResult, open_contexts, predict_rows
from ops.settings import artifacts_folder, producer_settings
from producer import Producer


@click.command(short_help="A file of contexts to a file of vectors.")
@options.file_of_contexts
@click.option("--direct", is_flag=True, help="In this process, with AMN alone: no server needed.")
@click.option("--in-flight", type=click.IntRange(64, 16_384), default=1024, help="Rows waiting at once.")
@options.artifacts
@options.url
@options.queue
@options.partitions
@options.as_json
def predict(
    source: Path,
    target: Path,
    direct: bool,
    artifacts: Path | None,
    url: str | None,
    queue: str | None,
    partitions: int | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Predict the next vector of every context in a file.

    IN.npy has shape (N, 5, 768), float32 or float16, unit-norm rows, oldest first; OUT.npy gets
    shape (N, 768), float32. The input is streamed, the output appears when it is whole. A row that
    breaks the contract fails alone: its output row is NaN, it is named, and the exit code is 1.

    Escalated rows hold the fallback's answer, so they differ from --direct; with --fast every row
    is AMN's. Rows go through the queue in batches, which the shadow evaluation does not see; one that
    a fallback may be worth goes again by itself.

    \b
    Examples:
      amn up &
      amn predict contexts.npy vectors.npy
      amn predict contexts.npy vectors.npy --direct
    """
    settings, started_s = FileOptions(**how), time.perf_counter()
    open_contexts(source)  # before a model is loaded, or a server is asked for
    check_output(target, source)
    with console.Bar("rows") as bar, contextlib.ExitStack() as undo:
        producer: Any
        if direct:
            settings = replace(settings, fast=True)
            producer = DirectProducer(artifacts_folder(artifacts) / "production_model")
        else:
            client = Producer(settings=producer_settings(url, queue), partitions=partitions)
            producer = undo.enter_context(client)
        draw = partial(bar.draw, "predicting")
        result = predict_rows(source, target, producer, settings, draw)
    elapsed_s = time.perf_counter() - started_s
    _report(result, target, elapsed_s, as_json)


def _report(result: FileResult, target: Path, elapsed_s: float, as_json: bool) -> None:
    if as_json:
        console.say_json(result.to_json() | {"elapsed_s": round(elapsed_s, 3)})
    else:
        served = ", ".join(f"{count:,} by {name}" for name, count in result.served.most_common())
        console.err().print(
            f"{target}: {result.rows - result.failed:,} of {result.rows:,} rows answered"
            f"{f' ({served})' if served else ''} in {elapsed_s:.1f} s, "
            f"{result.rows / elapsed_s:,.0f} rows per second"
        )
        for row, code, text in result.failures[1:]:
            console.err().print(f"  row {row}: {code}: {text}")
    if result.failed:
        row, code, text = result.failures[0]
        raise RowsFailed(
            f"{result.failed} of {result.rows} rows have no answer and are NaN in {target}; "
            f"first: row {row}, {code}: {text}"
        )
