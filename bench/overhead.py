"""python -m bench overhead PART: what a part of the service costs the AMN worker and the server.

Services with the part and without it drain full queues in turns, another one first in each round. "off again"
is a second service without it: what differs there is the noise, and no smaller difference says anything. An
AMN worker has a core of its own; the server, all other workers and this process share the other one (Linux).
The throughput holds their use of that core too, and the CPU time a request does not. bench/parts.py has the
parts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from os import environ
from pathlib import Path
from typing import Any
from unittest import mock

import click

from bench.machine import environment
from bench.parts import PARTS, Variant
from bench.report import out_option, progress, write
from bench.service import Service
from producer.keys import Keys

FIGURES = {"worker_us": "worker CPU, us", "server_us": "server CPU, us", "answered_per_s": "answered/s"}
Run = dict[str, float]


@click.command("overhead")
@click.argument("name", metavar="PART", type=click.Choice(list(PARTS)))
@click.option("--requests", default=4_000, show_default=True, help="Of one run.")
@click.option("--repeats", default=8, show_default=True, help="Rounds.")
@out_option
def command(name: str, requests: int, repeats: int, out: Path) -> None:
    """Cost a request of stages, traces, shadow or page; writes overhead-PART.json and overhead-PART.md."""
    surroundings, part = environment(), PARTS[name]
    with ExitStack() as stack:
        variants = {"off": part.off, "off again": part.off, **part.variants(stack)}
        services = {one: stack.enter_context(_service(variant)) for one, variant in variants.items()}
        runs: dict[str, list[Run]] = {one: [] for one in variants}
        for number in progress(range(repeats + 1), name, repeats + 1):
            at = number % len(variants)
            for one in (*list(variants)[at:], *list(variants)[:at]):
                found = _drained(services[one], variants[one], requests, f"round{number}", part.settle_s)
                if number:  # the first round warms up
                    runs[one].append(found)
        beside = part.beside(services["off"])
    rows = [{name: one, **row} for one, row in compared(runs).items()]
    report = {
        "environment": surroundings,
        "requests": requests,
        "repeats": repeats,
        "rows": rows,
        "beside": beside,
    }
    note = f"A request; changes against off in the same round, of {repeats}: median (quartiles)."
    write(out, f"overhead-{name}", report, rows, note, beside)


@contextmanager
def _service(variant: Variant) -> Iterator[Service]:
    """A service of a variant; the variables are for the processes that are started for it."""
    with ExitStack() as stack:
        with mock.patch.dict(environ, variant.environment):
            service = Service(sample_rate=variant.sampled, shadow=variant.sampled > 0)
            stack.enter_context(service)
        yield service


def _drained(service: Service, variant: Variant, requests: int, run: str, settle_s: float) -> Run:
    """Fills the queue while the AMN worker is stopped, then lets it go."""
    options = variant.options
    with variant.during(service):
        total, _ = service.fill(requests, options=options and (lambda number: options(number, run)))
        read = service.meter()
        drained = service.drain(total)
        time.sleep(settle_s)
        _, worker_s, server_s = map(float, read())
    service.client.xtrim(Keys().shadow, maxlen=0, approximate=False)
    service.forget()
    cpu = {"worker_us": worker_s / total * 1e6, "server_us": server_s / total * 1e6}
    return {**cpu, "answered_per_s": drained.requests / drained.seconds}


def compared(runs: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, Any]]:
    """Return by variant the figures: medians of "off", and of the others the changes against it by round."""
    off = runs["off"]
    rows: dict[str, dict[str, Any]] = {
        "off": {text: statistics.median(run[name] for run in off) for name, text in FIGURES.items()}
    }
    for variant in list(runs)[1:]:
        rows[variant] = {}
        for name, text in FIGURES.items():
            changes = [on[name] / without[name] - 1 for on, without in zip(runs[variant], off, strict=True)]
            low, middle, high = statistics.quantiles(changes * 2, n=4, method="inclusive")
            rows[variant][text] = f"{middle:+.1%} ({low:+.1%} to {high:+.1%})"
    return rows
