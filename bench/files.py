"""python -m bench files: a large file through `amn predict`: rate, memory, live traffic beside it.

The vectors of the shipped sample are repeated under other document ids. `amn predict` is a process of its
own, whose resident memory is looked at as the parts appear. In the same run stand the model and the gate
alone on one core (as in `batch`), a tenth of the rows as contexts instead of documents, and the latency of
live traffic at the level `normal` without a file and beside one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from bench.batch import Alone
from bench.curves import percentiles
from bench.machine import environment, resident_mb
from bench.report import draw, out_option, write
from bench.service import sample_contexts
from ops.local.server import ServerSettings
from ops.local.stack import Stack
from ops.run.traffic import TrafficSender, TrafficSettings
from ops.sample import Sample
from producer import Producer, ProducerSettings
from workers.pool.settings import PoolSettings

GROUP_ROWS = 16_384
SAMPLE = Path("artifacts/sample/sequences.npz")


@click.command("files")
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--live-rate", default=200, show_default=True, help="Live requests a second beside it.")
@click.option("--live-seconds", default=20.0, show_default=True)
@out_option
def command(rows: int, live_rate: int, live_seconds: float, out: Path) -> None:
    """Predict a large file; writes files.json, files.md and files.svg."""
    surroundings = environment()
    alone = Alone("calibrated").run(sample_contexts())["alone_per_s"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents, contexts = folder / "documents.parquet", folder / "contexts.npy"
        write_documents(documents, rows)
        np.save(contexts, np.resize(sample_contexts(), (rows // 10, 5, 768)).astype("f2"))
        counts = {"amn": 1, "fallback": 1}
        with Stack(counts, PoolSettings(url=""), ServerSettings()) as stack:
            url = stack.settings.url
            before = live(url, live_rate, live_seconds, "before")
            running = Predicting(url, documents, folder / "beside")
            beside = live(url, live_rate, live_seconds, "beside")
            running.process.kill()
            running.process.wait()
            runs = {
                "documents": Predicting(url, documents, folder / "documents").follow(),
                "contexts": Predicting(url, contexts, folder / "contexts").follow(),
            }
    rows_of = {"documents": rows, "contexts": rows // 10}
    sizes = {"documents": 768 * 2, "contexts": 5 * 768 * 2}
    report = {
        "environment": surroundings,
        "alone_per_s": alone,
        "live": {"rate": live_rate, "before": before, "beside": beside},
        "files": {name: figures(run, rows_of[name]) for name, run in runs.items()},
    }
    table = [
        {"form": name, "rows": row["rows"], "bytes a row": sizes[name], **row["shown"]}
        | {"of model and gate alone": row["rows_per_s"] / alone}
        for name, row in report["files"].items()
    ]
    traffic = [{"live traffic": name, **report["live"][name]} for name in ("before", "beside")]
    note = (
        f"Model and gate alone, on one core: {alone:,.0f} contexts/s. Live traffic at {live_rate}/s for "
        f"{live_seconds:g} s, one AMN and one fallback worker; memory is that of `amn predict`."
    )
    write(out, "files", report, table, traffic, note)
    draw(out / "files.svg", (7, 3.2), lambda axis: plot(axis, report["files"]["documents"]["memory"]))


def write_documents(path: Path, rows: int) -> None:
    """Write documents of 25 vectors, float16, in row groups."""
    vectors = np.load(SAMPLE)["vectors"].astype("f2")
    schema = pa.schema(
        [("doc_id", pa.int64()), ("position", pa.int32()), ("vector", pa.list_(pa.float16(), 768))]
    )
    with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for first in range(0, rows, GROUP_ROWS):
            number = np.arange(first, min(first + GROUP_ROWS, rows))
            flat = pa.array(vectors[number % len(vectors)].reshape(-1))
            columns = [pa.array(number // 25), pa.array((number % 25).astype("i4"))]
            columns.append(pa.FixedSizeListArray.from_arrays(flat, 768))
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


class Predicting:
    """An `amn predict` in a process of its own."""

    def __init__(self, url: str, source: Path, out: Path) -> None:
        words = [sys.executable, "-m", "ops.cli", "predict", str(source), "--out", str(out), "--url", url]
        self._out, self._started_s = out, time.perf_counter()
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def follow(self) -> list[tuple[int, float, float]]:
        """Return (parts, seconds, megabytes) about four times a second, until it ends.

        Raises:
            ClickException: It failed.
        """
        found = []
        while self.process.poll() is None:
            parts = len(list(self._out.glob("part-*.parquet"))) if self._out.exists() else 0
            found.append((parts, time.perf_counter() - self._started_s, resident_mb(self.process.pid)))
            time.sleep(0.25)
        if self.process.returncode:
            raise click.ClickException(f"amn predict ended with code {self.process.returncode}")
        return found


def live(url: str, rate: int, seconds: float, name: str) -> dict[str, float]:
    """Return percentiles of requests at the level `normal`, in milliseconds from due to AMN's answer."""
    settings = TrafficSettings(requests=int(rate * seconds), rate=rate, poisson=True, run_id=name)
    with Producer(settings=ProducerSettings(url=url)) as producer:
        record = TrafficSender(producer, Sample.load(SAMPLE), settings).run()
    return percentiles(record.amn_ms + record.send_lag_ms)


def figures(run: list[tuple[int, float, float]], rows: int) -> dict[str, Any]:
    """Return rate and memory of a run; the rate is that from the first part to the last."""
    first = next((one for one in run if one[0]), run[0])
    last_parts, last_s, _ = run[-1]
    group = rows / max(-(-rows // GROUP_ROWS), 1)
    rate = (last_parts - first[0]) * group / max(last_s - first[1], 1e-9)
    memory = [(min(parts * group, rows), mb) for parts, _, mb in run if mb == mb]
    early = [mb for done, mb in memory if 0 < done <= 2 * GROUP_ROWS] or [memory[0][1]]
    most = max(mb for _, mb in memory)
    shown = {"rows/s": rate, "MB after 20,000 rows": max(early), "most MB": most}
    return {"rows": rows, "rows_per_s": rate, "shown": shown, "memory": memory}


def plot(axis: Any, memory: list[tuple[float, float]]) -> None:
    """Draw resident memory against rows done."""
    axis.plot([rows for rows, _ in memory], [mb for _, mb in memory], color="#c2410c")
    axis.set(xlabel="rows predicted", ylabel="resident MB of amn predict")
    axis.set_ylim(bottom=0)
