"""python -m bench stages: what counting the times of the stages costs a worker.

Three services take turns on one core: "off" does not count (AMN_STAGES=0), "on" does, and "off again" is the
first one once more, so that what differs there is the noise. Each drains full batches, and then answers one
request at a time, which costs the most for each. The least figure of each stands in the report: whatever else
the machine does can only add to it. A second table has the CPU of the counting by itself, which is steadier.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import environ
from pathlib import Path

import click
import numpy as np

from bench.cost import closed_loop
from bench.machine import environment
from bench.report import out_option, progress, write
from bench.service import Service
from producer import Producer
from producer.messages import CONTEXT_SHAPE, Request
from workers.engine.entry import Entry, Outcome
from workers.engine.microbatch import MicroBatch
from workers.engine.stages import StageTimes

#: Requests that are counted by themselves in one go, and their moment: epoch ms, and as TIME gives it.
_ALONE, _NOW_MS, _NOW = 2_560, 1_700_000_000_000, (b"1700000000", b"900")
_VARIANTS = ("off", "on", "off again")


@click.command("stages")
@click.option("--requests", default=6_000, show_default=True, help="Of one drain; a tenth one at a time.")
@click.option("--repeats", default=8, show_default=True, help="Runs of each.")
@out_option
def command(requests: int, repeats: int, out: Path) -> None:
    """Worker CPU a request with the times of the stages and without; writes stages.json and stages.md."""
    surroundings, rows = environment(), []
    with ExitStack() as stack:
        services = {}
        for name in _VARIANTS:
            with variables(AMN_STAGES=str(int(name == "on"))):
                services[name] = stack.enter_context(Service())
        for way, cpu_us in (("full batches", _drained), ("one at a time", _looped)):
            least = dict.fromkeys(_VARIANTS, math.inf)
            for _ in progress(range(repeats), way, repeats):
                for name in _VARIANTS:
                    least[name] = min(least[name], cpu_us(services[name], requests))
            changes = {f"{name}, %": 100 * (least[name] / least["off"] - 1) for name in _VARIANTS[1:]}
            rows.append({"worker CPU, us a request": way, **least, **changes})
    rows = [{name: round(v, 1) if isinstance(v, float) else v for name, v in row.items()} for row in rows]
    alone = [{"requests of a micro-batch": n, "us a request": round(_alone_us(n), 2)} for n in (1, 8, 256)]
    report = {
        "environment": surroundings,
        "requests": requests,
        "repeats": repeats,
        "rows": rows,
        "alone": alone,
    }
    write(out, "stages", report, rows, "Counting by itself, CPU:", alone)


def _drained(service: Service, requests: int) -> float:
    drained = service.drain(service.fill(requests)[0])
    service.forget()
    return drained.figures()["worker_cpu_us"]


def _looped(service: Service, requests: int) -> float:
    with Producer(settings=service.settings) as producer:
        return closed_loop(service, producer, requests // 10, 1, "one at a time")["worker_cpu_us"]


def _alone_us(count: int, repeats: int = 20) -> float:
    """CPU of a loop and its keeper for the times of one request, in micro-batches of so many."""
    context = np.zeros(CONTEXT_SHAPE, np.float32)
    request = Request(id="r", reply_to="c", context=context, submitted_at_ms=_NOW_MS - 0.5)
    entries = [Entry(b"%d-0" % _NOW_MS, {}, 1, 2)] * count
    batch = MicroBatch(entries, [request] * count, context, _NOW_MS, time.perf_counter())
    outcomes = [Outcome(entry=entry, op="reply", counters="answered,answered:amn") for entry in entries]
    least_s = math.inf
    for _ in range(repeats):
        times, started_s = StageTimes(), time.thread_time()
        for _ in range(_ALONE // count):
            times.computed(batch, outcomes)
            times.ended(outcomes, [b"ok"] * count, _NOW)
        times.growth()
        least_s = min(least_s, time.thread_time() - started_s)
    return 1e6 * least_s / _ALONE


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """Variables for the processes that are started inside."""
    before = {name: environ.get(name) for name in values}
    environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            environ.pop(name) if value is None else environ.__setitem__(name, value)
