"""python -m bench files: a large file through `amn predict`: its rate, memory and cost.

The vectors of the shipped sample are repeated under other document ids. `amn predict` is a process of its
own, looked at as the parts appear: through the queue, with --direct, and through the queue with a tenth of
the rows as contexts. In the same run stand the model and the gate alone on one core (as in `batch`).
`beside` measures live traffic beside a file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from bench.batch import Alone
from bench.machine import cpu_seconds, environment, resident_mb
from bench.report import out_option, write
from bench.service import sample_contexts
from ops.local.server import ServerSettings
from ops.local.stack import Stack
from producer import ProducerSettings
from producer.transport.connection import connect
from workers.pool.settings import PoolSettings

GROUP_ROWS = 16_384
_PARTS_MIN = 4
SAMPLE = Path("artifacts/sample/sequences.npz")


@click.command("files")
@click.option("--rows", default=1_000_000, show_default=True)
@out_option
def command(rows: int, out: Path) -> None:
    """Predict a large file; writes files.json and files.md."""
    surroundings = environment()
    alone = Alone("calibrated").run(sample_contexts(), calls=400)["alone_per_s"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents, contexts = folder / "documents.parquet", folder / "contexts.npy"
        write_documents(documents, rows)
        np.save(contexts, np.resize(sample_contexts(), (rows // 10, 5, 768)).astype("f2"))
        with Stack({"amn": 1, "fallback": 1}, PoolSettings(url=""), ServerSettings()) as stack:
            through = Through(stack)
            runs = {
                "documents": (documents, rows, Predicting(documents, folder / "documents", through).follow()),
                "contexts": (contexts, rows // 10, Predicting(contexts, folder / "few", through).follow()),
            }
        runs["documents, --direct"] = documents, rows, Predicting(documents, folder / "direct").follow()
        files = {
            form: figures(readings, count) | {"bytes_a_row": path.stat().st_size / count}
            for form, (path, count, readings) in runs.items()
        }
    table = [
        {"form": form, "rows": one["rows"], "bytes a row": one["bytes_a_row"], **one["shown"]}
        | {"of model and gate alone": one["shown"]["rows/s"] / alone}
        for form, one in files.items()
    ]
    cpu = [{"CPU, us a row": form, **one["cpu_us"]} for form, one in files.items()]
    note = (
        f"Model and gate alone, on one core: {alone:,.0f} contexts/s. One AMN and one fallback "
        "worker; memory is that of `amn predict`, bytes through the server are in and out."
    )
    write(out, "files", {"environment": surroundings, "alone_per_s": alone, "files": files}, table, cpu, note)


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


class Through:
    """The service that a file goes through.

    Attributes:
        url: Of its server.    processes: Of server and workers, by name.
    """

    def __init__(self, stack: Stack) -> None:
        self.url, pool = stack.settings.url, stack.pool
        self._client: Any = connect(ProducerSettings(url=self.url))
        self.processes = {kind: ids[0] for kind, ids in pool.pids().items()} if pool else {}
        self.processes["server"] = int(self._client.info("server")["process_id"])

    def passed_bytes(self) -> int:
        """Return the bytes that came in and went out so far."""
        found = self._client.info("stats")
        return int(found["total_net_input_bytes"]) + int(found["total_net_output_bytes"])


class Reading(NamedTuple):
    """A run at one moment.

    Attributes:
        parts: Written so far.    seconds: Since the start.    resident_mb: Of `amn predict`.
        cpu_s: Of each process, since its start.    passed_bytes: Through the server.
    """

    parts: int
    seconds: float
    resident_mb: float
    cpu_s: dict[str, float]
    passed_bytes: int


class Predicting:
    """An `amn predict` in a process of its own, through a service or with --direct."""

    def __init__(self, source: Path, out: Path, through: Through | None = None) -> None:
        how = ["--url", through.url] if through else ["--direct"]
        words = [sys.executable, "-m", "ops.cli", "predict", str(source), "--out", str(out), *how]
        self._out, self._through, self._started_s = out, through, time.perf_counter()
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self._processes = {"client": self.process.pid, **(through.processes if through else {})}

    def follow(self) -> list[Reading]:
        """Return a reading at the start, one for each part, and some between, until it ends.

        Raises:
            ClickException: It failed.
        """
        found = [self._read(0)]
        while self.process.poll() is None:
            parts = len(list(self._out.glob("part-*.parquet"))) if self._out.exists() else 0
            if parts != found[-1].parts or time.perf_counter() - self._started_s > found[-1].seconds + 0.25:
                found.append(self._read(parts))
            time.sleep(0.02)
        if self.process.returncode:
            said = self.process.stderr.read().decode("utf-8", "replace") if self.process.stderr else ""
            raise click.ClickException(f"amn predict ended with code {self.process.returncode}: {said}")
        # It is gone when the last part is small: that was written at the last moment it was seen.
        return [*found, found[-1]._replace(parts=len(list(self._out.glob("part-*.parquet"))))]

    def _read(self, parts: int) -> Reading:
        return Reading(
            parts,
            time.perf_counter() - self._started_s,
            resident_mb(self.process.pid),
            {name: cpu_seconds(process) for name, process in self._processes.items()},
            self._through.passed_bytes() if self._through else 0,
        )


def figures(readings: list[Reading], rows: int) -> dict[str, Any]:
    """Return the figures of a run: from the first part to the last, or of all of it where there are few."""
    lasting = [one for one in readings if one.resident_mb > 0]  # a process that ended has none
    last = next(one for one in lasting if one.parts == lasting[-1].parts)
    # The next part is half done when one appears.
    first = next((one for one in lasting if 0 < one.parts <= last.parts - _PARTS_MIN), lasting[0])
    group = min(GROUP_ROWS, rows)
    counted = min(last.parts * group, rows) - min(first.parts * group, rows)
    memory = [(min(one.parts * group, rows), one.resident_mb) for one in lasting]
    return {
        "rows": rows,
        "shown": {
            "rows/s": counted / (last.seconds - first.seconds),
            "bytes a row through the server": (last.passed_bytes - first.passed_bytes) / counted or "",
            "MB after 20,000 rows": max(mb for done, mb in memory if done <= 20_000),
            "most MB": max(mb for _, mb in memory),
        },
        "cpu_us": {
            name: (last.cpu_s[name] - first.cpu_s[name]) / counted * 1e6
            for name in last.cpu_s
            if last.cpu_s[name] == last.cpu_s[name]
        },
    }
