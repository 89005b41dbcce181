"""python -m bench cost: what a request costs after a thousand and after a million, and with many waiting.

served   one service, requests sent and read back with `predict_many`; figures of each decade alone
waiting  up to 256: a closed loop of so many, with all that submitting and reading costs the server;
         from 1,000 on: a stopped queue is filled with so many and 6,000 more, and drained until so many
         are left. 15,360-byte contexts take 15.6 kB each in the server: 300,000 are 4.7 GB.
A worker's cost falls with what waits until its batches are full (256), and then stays: that is a batch's
effect, not the queue's length. start is from the start of the process to a warm, checked model.
Rows up to 10,000 are short, and one bad moment of the machine would change them: they are repeated with
new workers and an empty server each time, and the medians stand in the report.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from bench.machine import environment, resident_mb
from bench.report import COLOURS, draw, out_option, progress, write
from bench.service import Service, sample_contexts
from producer import Options, Producer

_FEW = (1, 16, 256)
DRAINED = 6_000
#: Rows up to here are repeated.
_OFTEN = 10_000
_IN_FLIGHT = 2_048
#: How many were served, or wait, and figures.
Row = dict[str, float]


@click.command("cost")
@click.option("--served-max", default=1_000_000, show_default=True, help="Requests served, by decades.")
@click.option("--waiting-max", default=300_000, show_default=True, help="Entries that wait at most.")
@click.option("--repeats", default=3, show_default=True, help="Of rows up to 10,000.")
@out_option
def command(served_max: int, waiting_max: int, repeats: int, out: Path) -> None:
    """Cost a request against requests served and waiting; writes cost.json, cost.md and cost.svg."""
    surroundings = environment()
    rounds = [_round(min(served_max, _OFTEN), min(waiting_max, _OFTEN)) for _ in range(repeats - 1)]
    rounds.append(_round(served_max, waiting_max))
    report = {
        "environment": surroundings,
        "start_s": round(statistics.median(one["start_s"] for one in rounds), 2),
        "repeats": repeats,
        "served": medians([one["served"] for one in rounds]),
        "waiting": medians([one["waiting"] for one in rounds]),
    }
    start = f"Start of a worker to ready: {report['start_s']:.2f} s."
    write(
        out,
        "cost",
        report,
        start,
        rows(report, "served", "requests"),
        rows(report, "waiting", "waiting"),
        NOTE,
    )
    plot(report, out / "cost.svg")


def _round(served_max: int, waiting_max: int) -> dict[str, Any]:
    with Service(1) as service:
        start_s, by_waiting = service.ready_s, waiting(service, waiting_max)
    with Service(1) as service:
        return {"start_s": start_s, "served": served(service, served_max), "waiting": by_waiting}


def medians(rounds: Sequence[Sequence[Row]]) -> list[Row]:
    """Each figure's median over the rounds; the last round may have rows that the others have not."""
    rows = []
    for i, last in enumerate(rounds[-1]):
        same = [one[i] for one in rounds if i < len(one)]
        rows.append({name: statistics.median(row[name] for row in same) for name in last})
    return rows


def served(service: Service, most: int) -> list[Row]:
    """One row a decade: its requests, figures and the worker's memory at its end."""
    rows, before = [], 0
    with Producer(settings=service.settings) as producer:
        for upto in decades(1_000, most):
            figures = closed_loop(service, producer, upto - before, _IN_FLIGHT, f"{upto:,} served")
            rows.append({"requests": upto, **figures})
            before = upto
    return rows


def waiting(service: Service, most: int) -> list[Row]:
    """One row a length of the queue."""
    rows = []
    with Producer(settings=service.settings) as producer:
        for length in _FEW:
            count = min(2_000 * length, DRAINED)
            rows.append(
                {"waiting": length, **closed_loop(service, producer, count, length, f"{length} waiting")}
            )
    left = 0
    for length in decades(1_000, most):
        left += service.fill(length + DRAINED - left, f"{length:,} waiting")[0]
        drained = service.drain(DRAINED)
        service.stop()
        left -= drained.requests
        used_mb = int(service.client.info("memory")["used_memory"]) / 1e6
        figures = {name: round(value, 1) for name, value in drained.figures().items()}
        rows.append({"waiting": length, **figures, "server_mb": round(used_mb, 1)})
        click.echo(f"{length:,} waiting: {_said(rows[-1])}", err=True)
        service.forget()
    return rows


def decades(first: int, most: int) -> list[int]:
    """Powers of ten from `first` on, and `most`."""
    powers = itertools.takewhile(lambda n: n < most, (first * 10**k for k in range(12)))
    return [*powers, most]


def closed_loop(service: Service, producer: Producer, count: int, in_flight: int, name: str) -> Row:
    """Sends and reads back `count` requests, at most `in_flight` under way."""
    read = service.meter()
    answers = producer.predict_many(_endless(count), in_flight=in_flight, options=Options(provisional=True))
    failed = sum(isinstance(answer, Exception) for _, answer in progress(answers, name, count))
    elapsed_s, worker_s, server_s = map(float, read())
    if failed:
        raise click.ClickException(f"{failed} of {count} requests failed")
    figures = {
        "drain_per_s": round(count / elapsed_s, 1),
        "worker_cpu_us": round(worker_s / count * 1e6, 1),
        "server_cpu_us": round(server_s / count * 1e6, 1),
        "worker_mb": resident_mb(service.pids[0]),
        "server_mb": round(int(service.client.info("memory")["used_memory"]) / 1e6, 1),
    }
    click.echo(f"{name}: {_said(figures)}", err=True)
    return figures


def _said(figures: Mapping[str, float]) -> str:
    """Said at once, so that a long run that breaks off has told what it measured."""
    return f"{figures['drain_per_s']:,.0f} answered/s, {figures['worker_cpu_us']:.1f} us of worker CPU each"


def _endless(count: int) -> Iterator[NDArray[np.float32]]:
    contexts = sample_contexts()
    return (contexts[i % len(contexts)] for i in range(count))


def rows(report: Mapping[str, Any], kind: str, name: str) -> list[dict[str, Any]]:
    """Return the rows of one table."""
    return [
        {f"requests {kind}": f"{row[name]:,.0f}", **{t: row[f] for f, t in _SHOWN.items() if f in row}}
        for row in report[kind]
    ]


_SHOWN = {
    "drain_per_s": "answered/s",
    "worker_cpu_us": "worker CPU, us a request",
    "server_cpu_us": "server CPU, us a request",
    "server_mb": "server MB",
    "worker_mb": "worker MB",
}
NOTE = (
    "Each row of the first table is that decade alone. Of the second, rows up to 256 are closed loops of "
    f"so many, and the others a drain of {DRAINED:,} alone, which begins with so many more than are left. "
    f"Rows up to {_OFTEN:,} are medians of several runs with new workers and an empty server."
)


def plot(report: Mapping[str, Any], path: Path) -> None:
    """CPU a request against both."""

    def draw_both(axes: Any) -> None:
        for axis, kind, name in zip(axes, ("served", "waiting"), ("requests", "waiting"), strict=True):
            counts = [row[name] for row in report[kind]]
            for figure, colour in zip(("worker_cpu_us", "server_cpu_us"), COLOURS, strict=False):
                values = [row[figure] for row in report[kind]]
                axis.plot(counts, values, marker="o", markersize=3, color=colour, label=figure.split("_")[0])
            axis.set(xscale="log", xlabel=f"requests {kind}", ylabel="CPU, us a request")
            axis.set_ylim(bottom=0)
            axis.legend(frameon=False)

    draw(path, (10, 3.6), draw_both, columns=2)
