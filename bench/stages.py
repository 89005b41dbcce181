"""python -m bench stages: what counting the times of the stages costs a worker.

Two services, of which one counts and one does not (AMN_STAGES=0), take turns on one core in the order
A B B A, so that a machine that slows down favours neither: in drains, with full batches, and in a closed
loop of one request at a time, which costs the most for each.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from os import environ
from pathlib import Path
from typing import Any

import click

from bench.cost import closed_loop
from bench.machine import environment
from bench.report import out_option, write
from bench.service import Service
from producer import Producer


@click.command("stages")
@click.option("--requests", default=6_000, show_default=True, help="Of one drain; a tenth in a closed loop.")
@click.option("--repeats", default=6, show_default=True, help="A B B A of each.")
@out_option
def command(requests: int, repeats: int, out: Path) -> None:
    """Worker CPU a request with the times of the stages and without; writes stages.json and stages.md."""
    surroundings, rows = environment(), []
    with ExitStack() as stack:
        with variables(AMN_STAGES="0"):
            off = stack.enter_context(Service())
        on = stack.enter_context(Service())
        for way, cpu_us in (("drain, full batches", _drained), ("closed loop, one at a time", _looped)):
            rows.append(
                {"way": way, **_compared(off, on, lambda one, cpu_us=cpu_us: cpu_us(one, requests), repeats)}
            )
    report = {"environment": surroundings, "requests": requests, "repeats": repeats, "rows": rows}
    write(
        out, "stages", report, rows, "Worker CPU, us a request; the change is a median, with its quartiles."
    )


def _compared(off: Service, on: Service, cpu_us: Callable[[Service], float], repeats: int) -> dict[str, Any]:
    """Medians of both, and the change in each A B B A."""
    pairs = []
    for repeat in range(repeats + 1):
        a, b, c, d = [cpu_us(one) for one in (off, on, on, off)]
        if repeat:  # the first round warms up
            pairs.append(((a + d) / 2, (b + c) / 2))
    changes = [with_us / without_us - 1 for without_us, with_us in pairs]
    low, _, high = statistics.quantiles(changes, n=4)
    return {
        "without": round(statistics.median(without_us for without_us, _ in pairs), 1),
        "with": round(statistics.median(with_us for _, with_us in pairs), 1),
        "change": f"{statistics.median(changes):+.1%} ({low:+.1%} to {high:+.1%})",
    }


def _drained(service: Service, requests: int) -> float:
    drained = service.drain(service.fill(requests)[0])
    service.forget()
    return drained.figures()["worker_cpu_us"]


def _looped(service: Service, requests: int) -> float:
    with Producer(settings=service.settings) as producer:
        return closed_loop(service, producer, requests // 10, 1, "one at a time")["worker_cpu_us"]


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
