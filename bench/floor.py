"""python -m bench floor: the latency of a bare loop in Python, to compare the service's with.

A client sends each context with one XADD at Poisson times; a worker reads what is there, computes, and
writes answers, XACK and XDEL at once; a second thread of the client reads the answers. There is no lease,
check, script or policy: the rest is what a loop of this kind could not do without. A request's clock starts
when it is due, as in `latency`. What the service takes longer is the queue, and the other workers on the
same cores.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Self

import click
import numpy as np
from numpy.typing import NDArray
from redis.exceptions import RedisError

from bench.curves import curve, percentiles, rows_shown, spreads
from bench.latency import references
from bench.machine import environment
from bench.report import out_option, write
from bench.service import sample_contexts
from ops.local.server import Server, ServerSettings
from producer import ProducerSettings
from producer.transport.connection import connect
from producer.transport.link import Link, Word
from workers.settings import artifacts_root

VARIANTS = ("no model", "model", "model and gate")
SERVICE = "the service"
ANSWERS, BLOCK_MS, COUNT = "answers", 500, 64
#: No answer for so long means that there will be none.
_PATIENCE_S = 10.0
_WARM_UP = 200
Answering = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@click.command("floor")
@click.option("--rates", default="100,500,1000", show_default=True, help="Requests/s.")
@click.option("--seconds", default=5.0, show_default=True, help="Of each rate.")
@click.option("--repeats", default=2, show_default=True, help="Of all variants and rates, in turns.")
@click.option("--bank", type=click.Path(path_type=Path, exists=True), help="A reference bank of your own.")
@out_option
def command(rates: str, seconds: float, repeats: int, bank: Path | None, out: Path) -> None:
    """Latency of a bare loop; writes floor.json, floor.md and floor.svg."""
    surroundings, bank = environment(), bank or artifacts_root() / "reference_bank"
    asked = sorted(map(float, rates.split(",")))
    with tempfile.TemporaryDirectory() as folder, Server(ServerSettings(data=Path(folder))) as server:
        found = measure(server.url, bank, asked, seconds, repeats)
    service = of_service(out / "latency.json", asked)
    report = {"environment": surroundings, "references": references(bank), "seconds": seconds}
    report |= {"repeats": repeats, "variants": found, "service": service}
    curves = {**({SERVICE: service["rates"]} if service else {}), **found}
    rows = [row for name, some in curves.items() for row in rows_shown(some, seconds, loop=name)]
    note = (
        f"Bank of {report['references']:,} references. Poisson arrivals, {repeats} runs of {seconds:g} s of "
        "each rate in turns: median (min, max) from due to read, unix socket, 15,360 bytes a request, "
        "3,072 an answer."
    )
    if service:
        note += f" The service's rows are those of `latency` above, of {service['date']}."
    write(out, "floor", report, rows, note)
    curve(curves, out / "floor.svg")


def of_service(path: Path, rates: Sequence[float]) -> dict[str, Any]:
    """Return what `latency` wrote of the same rates; {} when there is nothing."""
    if not path.is_file():
        return {}
    report = json.loads(path.read_text("utf-8"))
    shown = ("rate", "ms_p50", "ms_p95", "ms_p99")
    rows = [{name: row[name] for name in shown} for row in report["rates"] if row["rate"] in rates]
    return {"date": report["environment"]["date"], "rates": rows}


def measure(
    url: str, bank: Path, rates: Sequence[float], seconds: float, repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """Return by variant one row a rate: of each percentile the median, least and most of the repeats."""
    runs: dict[tuple[str, float], list[Mapping[str, float]]] = {}
    with ExitStack() as stack:
        loops = [stack.enter_context(BareLoop(url, variant, bank)) for variant in VARIANTS]
        for loop in loops:
            once(url, loop, 1000, _WARM_UP, 0)
        for repeat in range(repeats):
            for rate in rates:
                click.echo(f"{rate:g} requests/s, run {repeat + 1}", err=True)
                for loop in loops:
                    waited_ms = once(url, loop, rate, max(int(rate * seconds), 100), repeat)
                    runs.setdefault((loop.variant, rate), []).append(percentiles(waited_ms))
    return {name: [{"rate": rate, **spreads(runs[name, rate])} for rate in rates] for name in VARIANTS}


class BareLoop:
    """A worker process that reads, computes and writes; a context manager in which it is ready."""

    def __init__(self, url: str, variant: str, bank: Path) -> None:
        self.variant, self.stream = variant, f"bare:{variant.replace(' ', '-')}"
        context = multiprocessing.get_context("spawn")
        self._ready = context.Event()
        words = (url, variant, self.stream, bank, self._ready)
        self._process = context.Process(target=serve, args=words, daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        while not self._ready.wait(0.1):
            self.check()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def check(self) -> None:
        """Raise ClickException when it ended."""
        if (code := self._process.exitcode) is not None:
            raise click.ClickException(f"the loop of {self.variant!r} ended (code {code}); it said why above")


def serve(url: str, variant: str, stream: str, bank: Path, ready: Event) -> None:
    """Answer what comes until this process is killed."""
    answer = answering(variant, bank)
    link = Link(connect(ProducerSettings(url=url), block_ms=BLOCK_MS))
    link.call("XGROUP", "CREATE", stream, "workers", "0", "MKSTREAM")
    buffer = np.zeros((COUNT, 5, 768), np.float32)
    answer(buffer[:1])
    gc.collect()
    gc.freeze()  # as our workers do
    gc.set_threshold(100_000)
    ready.set()
    words: tuple[Word, ...] = ("XREADGROUP", "GROUP", "workers", "w", "COUNT", COUNT, "BLOCK", BLOCK_MS)
    while True:
        rows = entries(link.call(*words, "STREAMS", stream, ">"))
        if not rows:
            continue
        for row, (_, fields) in zip(buffer, rows, strict=False):
            row[:] = np.frombuffer(fields[1], "<f4").reshape(5, 768)
        vectors = answer(buffer[: len(rows)])
        ids = [entry for entry, _ in rows]
        answers = [
            ("XADD", ANSWERS, "*", "number", fields[3], "vector", vector.tobytes())
            for vector, (_, fields) in zip(vectors, rows, strict=True)
        ]
        for said in link.each([*answers, ("XACK", stream, "workers", *ids), ("XDEL", stream, *ids)]):
            if isinstance(said, Exception):
                raise said


def answering(variant: str, bank: Path) -> Answering:
    """Return the function that makes vectors (n, 768) of contexts (n, 5, 768)."""
    if variant == "no model":
        return lambda contexts: contexts[:, -1]
    import torch

    from amn.predictor import Predictor

    torch.set_num_threads(1)
    predictor = Predictor.open(artifacts_root() / "production_model", bank)
    if variant == "model":
        return predictor.forward
    references = predictor.bank
    assert references is not None

    def gated(contexts: NDArray[np.float32]) -> NDArray[np.float32]:
        vectors = predictor.forward(contexts)
        references.top2(vectors)
        return vectors

    return gated


def entries(found: Any) -> list[tuple[bytes, list[bytes]]]:
    """Return the entries of a read of one stream, whichever form the driver gives them."""
    streams = found.items() if isinstance(found, dict) else found or ()
    return [row for _, rows in streams for row in rows]


def once(url: str, loop: BareLoop, rate: float, count: int, seed: int) -> NDArray[np.float64]:
    """Return milliseconds from due to read, of `count` requests.

    Raises:
        ClickException: The loop ended, or its answers do not come.
    """
    contexts = [context.astype("<f4").tobytes() for context in sample_contexts()[:512]]
    read_s, settings = np.full(count, np.nan), ProducerSettings(url=url)
    link, answers = Link(connect(settings)), Link(connect(settings, block_ms=BLOCK_MS))
    link.call("DEL", ANSWERS)
    reader = threading.Thread(target=note_answers, args=(answers, read_s), daemon=True)
    gc.collect()
    gc.freeze()
    due_s = time.perf_counter() + 0.05 + np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))
    reader.start()
    for i in range(count):
        time.sleep(max(due_s[i] - time.perf_counter(), 0))
        link.call("XADD", loop.stream, "*", "context", contexts[i % len(contexts)], "number", str(i))
    while reader.is_alive():
        reader.join(0.2)
        loop.check()
    gc.unfreeze()
    link.close()
    answers.close()
    if missing := int(np.isnan(read_s).sum()):
        raise click.ClickException(f"{loop.variant!r}: {missing} answers are missing")
    return (read_s - due_s) * 1000


def note_answers(link: Link, read_s: NDArray[np.float64]) -> None:
    """Note when answers come, until all are there or none has come for a while."""
    last: bytes | str = "0"
    left, last_s = len(read_s), time.perf_counter()
    while left and time.perf_counter() - last_s < _PATIENCE_S:
        try:
            rows = entries(link.call("XREAD", "COUNT", 256, "BLOCK", BLOCK_MS, "STREAMS", ANSWERS, last))
        except (RedisError, OSError):  # what is missing is told
            return
        if not rows:
            continue
        last_s, last = time.perf_counter(), rows[-1][0]
        for _, fields in rows:
            read_s[int(fields[1])] = last_s
            np.frombuffer(fields[3], "<f4")
        left -= len(rows)
