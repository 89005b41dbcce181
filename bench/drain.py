"""python -m bench drain: how fast AMN workers drain a queue, and what 1, 2 and 4 of them make of two cores.

The workers are stopped while the queue is filled with single-context requests of the shipped sample
(15,360-byte contexts), then drain it: model, gate on the shipped bank, policy, answers stored.
Enqueueing is timed apart. One worker has a core of its own; server and producer share the other one
(bench/service.py). Beside it stand model and gate alone in this process (bench/batch.py): what is left
of a worker's CPU is the queue's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bench.batch import alone_us
from bench.machine import environment, spread
from bench.report import out_option, write
from bench.service import Service

FIGURES = ("enqueue_per_s", "drain_per_s", "worker_cpu_us", "server_cpu_us")


@click.command("drain")
@click.option("--requests", default=20_000, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--workers", default="1,2,4", show_default=True, help="Counts of AMN workers.")
@out_option
def command(requests: int, repeats: int, workers: str, out: Path) -> None:
    """Measure; writes drain.json and drain.md."""
    counts = [int(count) for count in workers.split(",")]
    runs: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    surroundings = environment()
    for repeat in range(repeats):
        for count in counts:
            click.echo(f"run {repeat + 1} of {repeats}, {count} worker(s)", err=True)
            runs[count].append(drain(requests, count))
    report = {
        "environment": surroundings,
        "requests": requests,
        "repeats": repeats,
        "workers": {
            str(count): {name: spread([run[name] for run in runs[count]]) for name in FIGURES}
            for count in counts
        },
        "alone_us": alone_us(),
    }
    write(out, "drain", report, rows(report), note(report))


def drain(requests: int, workers: int) -> dict[str, float]:
    """One run with processes of its own."""
    with Service(workers) as service:
        total, enqueue_s = service.fill(requests)
        return {"enqueue_per_s": total / enqueue_s, **service.drain(total).figures()}


def rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row a count of workers; efficiency is against one worker times the cores in use."""
    by_count, cores = report["workers"], int(report["environment"]["cores"])
    first = next(iter(by_count.values()))["drain_per_s"]["median"]
    return [
        {
            "AMN workers": count,
            "drained/s": row["drain_per_s"],
            "against one worker": f"{row['drain_per_s']['median'] / first:.2f} x",
            "efficiency": f"{row['drain_per_s']['median'] / first / min(int(count), cores):.0%}",
            "enqueued/s": row["enqueue_per_s"],
            "worker CPU, us a request": row["worker_cpu_us"]["median"],
            "server CPU, us a request": row["server_cpu_us"]["median"],
        }
        for count, row in by_count.items()
    ]


def note(report: Mapping[str, Any]) -> str:
    """Return what the rows are, and the share of model and gate in them."""
    alone, first = report["alone_us"], next(iter(report["workers"].values()))
    return (
        f"{report['requests']:,} requests, {report['repeats']} repeats, median (min, max), unix socket. "
        "Efficiency: drained/s over that of one worker times the cores in use. Model and gate alone take "
        f"{alone:.1f} us of CPU a context, in batches of 256 on one thread: "
        f"{alone / first['worker_cpu_us']['median']:.0%} of what one worker spends on a request."
    )
