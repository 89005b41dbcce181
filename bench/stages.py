"""python -m bench stages: what counting the times of the stages costs a worker.

Three services take turns on one core: "off" does not count (AMN_STAGES=0), "on" does, and "off again" is the
first one once more, so that what differs there is the noise. Each drains full batches, and then answers one
request at a time, which costs the most for each. The least figure of each stands in the report: whatever else
the machine does can only add to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import environ
from pathlib import Path

import click

from bench.cost import closed_loop
from bench.machine import environment
from bench.report import out_option, progress, write
from bench.service import Service
from producer import Producer

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
    report = {"environment": surroundings, "requests": requests, "repeats": repeats, "rows": rows}
    write(out, "stages", report, rows)


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
