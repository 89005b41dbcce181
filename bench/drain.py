"""python -m bench drain: how fast AMN workers drain a queue, and what 1, 2 and 4 of them make of two cores.

The workers are stopped while the queue is filled with single-context requests of the shipped sample
(15,360-byte contexts), then drain it: model, gate on the shipped bank, policy, answers stored.
Enqueueing is timed apart. One worker has a core of its own; server and producer share the other one
(bench/service.py). Beside it the model and the gate alone at the worker's batch size, in this process:
what is left of a worker's CPU is the queue's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.machine import environment, spread
from bench.report import out_option, write
from bench.service import Service, sample_contexts
from workers.settings import artifacts_root

BATCH = 256
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
        "alone": model_alone(),
    }
    write(out, "drain", report, rows(report), note(report))


def drain(requests: int, workers: int) -> dict[str, float]:
    """One run with processes of its own."""
    with Service(workers) as service:
        total, enqueue_s = service.fill(requests)
        return {"enqueue_per_s": total / enqueue_s, **service.drain(total).figures()}


def model_alone(rounds: int = 100) -> dict[str, float]:
    """CPU microseconds a context for the model and for the gate, in the worker's batches, one thread."""
    import torch
    from threadpoolctl import threadpool_limits

    from amn.predictor import Predictor

    torch.set_num_threads(1)
    root = artifacts_root()
    predictor = Predictor.open(root / "production_model", root / "reference_bank")
    assert predictor.bank is not None
    batch = np.ascontiguousarray(sample_contexts()[:BATCH])
    model_s, gate_s = [], []
    with threadpool_limits(1):
        for _ in range(rounds):
            started_s = time.thread_time()
            vectors = predictor.forward(batch)
            computed_s = time.thread_time()
            predictor.bank.top2(vectors)
            gate_s.append(time.thread_time() - computed_s)
            model_s.append(computed_s - started_s)
    return {
        "model_us": round(statistics.median(model_s) / BATCH * 1e6, 1),
        "gate_us": round(statistics.median(gate_s) / BATCH * 1e6, 1),
    }


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
    alone, first = report["alone"], next(iter(report["workers"].values()))
    both, spent = alone["model_us"] + alone["gate_us"], first["worker_cpu_us"]["median"]
    return (
        f"{report['requests']:,} requests, {report['repeats']} repeats, median (min, max), unix socket. "
        "Efficiency: drained/s over that of one worker times the cores in use. Model alone "
        f"{alone['model_us']:.1f} us and gate alone {alone['gate_us']:.1f} us a context, in batches of "
        f"{BATCH} on one thread: {both / spent:.0%} of the CPU that one worker spends on a request."
    )
