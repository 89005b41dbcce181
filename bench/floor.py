"""python -m bench floor: the latency of a bare loop in Python, to compare the service's with.

A client sends each context with one XADD at Poisson times; a worker reads what is there, computes, and
writes answers, XACK and XDEL at once (bench/floor_worker.py); a second thread of the client reads the
answers. A request's clock starts when it is due, as in `latency`. What the service takes longer is the
queue: leases, checks, one script a batch, policy, and the other workers on the same cores.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click
import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray
from redis.exceptions import RedisError

from bench.curves import curve
from bench.floor_worker import ANSWERS, BLOCK_MS, VARIANTS, entries
from bench.latency import percentiles, references, told
from bench.machine import environment, spread
from bench.report import facts, markdown, write
from bench.service import sample_contexts
from ops.local.server import Server, ServerSettings
from producer import ProducerSettings
from producer.transport.connection import connect
from producer.transport.link import Link
from workers.pool.settings import PoolSettings
from workers.settings import artifacts_root

SHOWN = ("ms_p50", "ms_p95", "ms_p99")
SERVICE = "the service"
_START_S = 60.0
#: No answer for so long means that there will be none.
_PATIENCE_S = 10.0
_WARM_UP = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A bare loop that is ready.

    Attributes:
        variant: Of VARIANTS.    stream: Where it reads.    process, log: Itself, and what it said.
    """

    variant: str
    stream: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def check(self) -> None:
        """Raises ClickException when it ended."""
        code = self.process.poll()
        if code is not None:
            self.log.seek(0)
            lines = self.log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise click.ClickException(f"the worker of {self.variant!r} ended (code {code}): {lines[-1]}")


@click.command("floor")
@click.option("--rates", default="100,500,1000", show_default=True, help="Requests/s.")
@click.option("--seconds", default=5.0, show_default=True, help="Of each rate.")
@click.option("--repeats", default=2, show_default=True, help="Of all variants and rates, in turns.")
@click.option("--bank", type=click.Path(path_type=Path, exists=True), help="A reference bank of your own.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("var/bench"), show_default=True)
def command(rates: str, seconds: float, repeats: int, bank: Path | None, out: Path) -> None:
    """Latency of a bare loop; writes floor.json, floor.md and floor.svg."""
    surroundings, bank = environment(), bank or artifacts_root() / "reference_bank"
    loads = _rates(rates)
    with tempfile.TemporaryDirectory() as folder, Server(ServerSettings(data=Path(folder))) as server:
        found = measure(server.url, bank, loads, seconds, repeats)
    report = {
        "environment": surroundings,
        "references": references(bank),
        "seconds": seconds,
        "repeats": repeats,
        "variants": found,
        "service": _service(out / "latency.json"),
    }
    write(out, "floor", report, table(report))
    curve(_curves(report), out / "floor.svg")


def measure(
    url: str, bank: Path, rates: Sequence[float], seconds: float, repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """By variant, one row a rate: of each percentile the median, least and most of the repeats."""
    contexts = [context.astype("<f4").tobytes() for context in sample_contexts()[:512]]
    runs: dict[tuple[str, float], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        workers = [stack.enter_context(_worker(url, variant, bank)) for variant in VARIANTS]
        for worker in workers:
            once(url, worker, contexts, 1000, _WARM_UP, 0)
        for repeat in range(repeats):
            for rate in rates:
                click.echo(f"{rate:g} requests/s, run {repeat + 1}", err=True)
                for worker in workers:
                    count = max(int(rate * seconds), 100)
                    waited_ms = once(url, worker, contexts, rate, count, repeat)
                    runs.setdefault((worker.variant, rate), []).append(_percentiles(waited_ms))
    return {
        variant: [{"rate": rate, **_spreads(runs[variant, rate])} for rate in rates] for variant in VARIANTS
    }


def once(
    url: str, worker: Worker, contexts: Sequence[bytes], rate: float, count: int, seed: int
) -> NDArray[np.float64]:
    """Milliseconds from due to read, of `count` requests."""
    reader = _Reader(url, count)
    link = Link(connect(ProducerSettings(url=url)))
    gc.collect()
    gc.freeze()
    waits_s = np.random.default_rng(seed).exponential(1 / rate, count)
    due_s = time.perf_counter() + 0.05 + np.cumsum(waits_s)
    try:
        reader.start()
        for i in range(count):
            left_s = due_s[i] - time.perf_counter()
            if left_s > 0:
                time.sleep(left_s)
            link.call("XADD", worker.stream, "*", "context", contexts[i % len(contexts)], "number", str(i))
        reader.wait(worker)
    finally:
        reader.stop()
        link.close()
        gc.unfreeze()
    return (reader.read_s - due_s) * 1000


class _Reader:
    """A thread that notes when answers come; at most `_PATIENCE_S` without one.

    Attributes:
        read_s: Of each request, NaN before.
    """

    def __init__(self, url: str, count: int) -> None:
        self.read_s = np.full(count, np.nan)
        self._link = Link(connect(ProducerSettings(url=url), block_ms=BLOCK_MS))
        self._left, self._ended = count, threading.Event()
        self._last_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._link.call("DEL", ANSWERS)

    def start(self) -> None:
        self._thread.start()

    def wait(self, worker: Worker) -> None:
        """Raises ClickException when the worker ended, or nothing comes."""
        self._last_s = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.2)
            worker.check()
            if time.monotonic() - self._last_s > _PATIENCE_S:
                raise click.ClickException(
                    f"{worker.variant!r}: {self._left} answers are missing, none came for {_PATIENCE_S:g} s"
                )
        if self._left:
            raise click.ClickException(f"{worker.variant!r}: the answers could not be read to their end")

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(2)
        self._link.close()

    def _run(self) -> None:
        last: bytes | str = "0"
        while self._left and not self._ended.is_set():
            try:
                found = self._link.call("XREAD", "COUNT", 256, "BLOCK", BLOCK_MS, "STREAMS", ANSWERS, last)
            except (RedisError, OSError):  # `wait` tells what is missing
                return
            now_s = time.perf_counter()
            rows = entries(found) if found else []
            for _, fields in rows:
                self.read_s[int(fields[1])] = now_s
                np.frombuffer(fields[3], "<f4")
            if rows:
                last = rows[-1][0]
                self._left -= len(rows)
                self._last_s = time.monotonic()


@contextmanager
def _worker(url: str, variant: str, bank: Path) -> Iterator[Worker]:
    """Starts one, waits until it is ready, and ends it."""
    stream = f"bare:{variant.replace(' ', '-')}"
    words = [sys.executable, "-m", "bench.floor_worker", variant, stream, str(bank)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            words, env=PoolSettings(url=url).environment(), stdout=log, stderr=subprocess.STDOUT
        )
        worker = Worker(variant=variant, stream=stream, process=process, log=log)
        try:
            _ready(worker)
            yield worker
        finally:
            process.kill()
            process.wait()


def _ready(worker: Worker) -> None:
    give_up_at_s = time.monotonic() + _START_S
    while True:
        worker.log.seek(0, 2)
        if worker.log.tell():
            worker.log.seek(0)
            if b"ready" in worker.log.read():
                return
        worker.check()
        if time.monotonic() > give_up_at_s:
            raise click.ClickException(f"the worker of {worker.variant!r} is not ready after {_START_S:g} s")
        time.sleep(0.05)


def _rates(text: str) -> list[float]:
    try:
        rates = [float(word) for word in text.split(",")]
    except ValueError:
        rates = []
    if not rates or min(rates) <= 0:
        raise click.BadParameter(f"{text!r}: give requests a second, such as 100,500", param_hint="--rates")
    return sorted(rates)


def _percentiles(waited_ms: NDArray[np.float64]) -> dict[str, float]:
    histogram = HdrHistogram(1, 60_000_000, 3)
    for waited in waited_ms:
        histogram.record_value(max(int(waited * 1000), 1))
    return percentiles(histogram)


def _spreads(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {name: spread([run[name] for run in runs], 3) for name in SHOWN}


def _service(path: Path) -> dict[str, Any]:
    """Returns the measurement of `latency` in this folder; {} when there is none."""
    if not path.is_file():
        return {}
    report = json.loads(path.read_text("utf-8"))
    rates = [{"rate": row["rate"], **{name: row[name] for name in SHOWN}} for row in report["rates"]]
    return {"date": report["environment"]["date"], "rates": rates}


def _curves(report: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """All variants, and the service at the same rates."""
    asked = {row["rate"] for row in report["variants"][VARIANTS[0]]}
    ours = [row for row in report["service"].get("rates", ()) if row["rate"] in asked]
    return {**({SERVICE: ours} if ours else {}), **report["variants"]}


def table(report: Mapping[str, Any]) -> str:
    """Markdown."""
    rows = [
        (name, f"{row['rate']:,.0f}", *(told(row, p, row["rate"] * report["seconds"]) for p in (50, 95, 99)))
        for name, some in _curves(report).items()
        for row in some
    ]
    service = report["service"]
    from_ = f" The service's rows are those of `latency` above, of {service['date']}." if service else ""
    lines = [
        *markdown(("bare loop with", "offered/s", "p50 ms", "p95 ms", "p99 ms"), rows),
        "",
        f"Bank of {report['references']:,} references. Poisson arrivals, {report['repeats']} runs of "
        f"{report['seconds']:g} s of each rate in turns: median (min, max) from due to read, unix socket, "
        f"15,360 bytes a request, 3,072 an answer.{from_} {facts(report)}",
    ]
    return "\n".join(lines) + "\n"
