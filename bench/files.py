"""python -m bench files: a large file through `amn predict`: its rate, memory and cost.

The vectors of the shipped sample are repeated under other document ids. `amn predict` is a process of its
own: through the queue with a tenth of the documents and with all, whose memory must be alike, and with a
tenth of the rows as contexts; then with --direct. In the same run stand the model and the gate alone on one
core (as in `batch`). `beside` measures live traffic beside a file.
"""

from __future__ import annotations

import json
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
from bench.machine import cpu_seconds, environment, resident_mb
from bench.report import out_option, write
from bench.service import sample_contexts
from ops.local.server import ServerSettings
from ops.local.stack import Stack
from producer import ProducerSettings
from producer.transport.connection import connect
from workers.pool.settings import PoolSettings

GROUP_ROWS = 16_384
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
        few, documents, contexts = (folder / name for name in ("few.parquet", "all.parquet", "contexts.npy"))
        write_documents(few, rows // 10)
        write_documents(documents, rows)
        np.save(contexts, np.resize(sample_contexts(), (rows // 10, 5, 768)).astype("f2"))
        with Stack({"amn": 1, "fallback": 1}, PoolSettings(url=""), ServerSettings()) as stack:
            files = {
                form: predicted(path, folder / form, stack)
                for form, path in {"a tenth": few, "documents": documents, "contexts": contexts}.items()
            }
        files["documents, --direct"] = predicted(documents, folder / "direct")
    table = [{"form": form, **one["shown"]} for form, one in files.items()]
    table = [row | {"of model and gate alone": row["rows/s"] / alone} for row in table]
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


def started(source: Path, out: Path, *how: str) -> subprocess.Popen[str]:
    """Start an `amn predict` in a process of its own; at its end it prints its summary as JSON."""
    words = [sys.executable, "-m", "ops.cli", "predict", str(source), "--out", str(out), "--json", *how]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def predicted(source: Path, out: Path, stack: Stack | None = None) -> dict[str, Any]:
    """Predict a file through a service, or with --direct, and return the figures of the whole run.

    Raises:
        ClickException: It failed.
    """
    client: Any = connect(ProducerSettings(url=stack.settings.url)) if stack else None
    process = started(source, out, *(["--url", stack.settings.url] if stack else ["--direct"]))
    processes = {"client": process.pid}
    if stack and stack.pool:
        processes |= {kind: ids[0] for kind, ids in stack.pool.pids().items()}
        processes["server"] = int(client.info("server")["process_id"])

    def passed_bytes() -> int:
        found = client.info("stats") if client else {}
        return sum(int(found.get(f"total_net_{way}put_bytes", 0)) for way in ("in", "out"))

    bytes_before, most_mb = passed_bytes(), 0.0
    cpu_before_s = cpu_s = {name: cpu_seconds(one) for name, one in processes.items()}
    while process.poll() is None:
        cpu_s = {name: cpu_seconds(one) for name, one in processes.items()}
        most_mb = max(most_mb, resident_mb(process.pid))
        time.sleep(0.05)
    said, errors = process.communicate()
    if process.returncode:
        raise click.ClickException(f"amn predict ended with code {process.returncode}: {errors}")
    summary = json.loads(said)
    rows = summary["rows"]
    return {
        "shown": {
            "rows": rows,
            "bytes a row": source.stat().st_size / rows,
            "rows/s": summary["rows_per_s"],
            "bytes a row through the server": (passed_bytes() - bytes_before) / rows or "",
            "most MB": most_mb,
        },
        "cpu_us": {name: (cpu_s[name] - cpu_before_s[name]) / rows * 1e6 for name in cpu_s},
    }
