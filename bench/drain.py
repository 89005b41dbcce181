"""python -m bench drain: how fast AMN workers drain a queue, and what 1, 2 and 4 of them make of two cores.

The workers are stopped while the queue is filled with single-context requests of the shipped sample
(15,360-byte contexts), then drain it: model, gate on the shipped bank, policy, answers stored.
Enqueueing is timed apart. One worker has a core of its own; server and producer share the other one
(bench/service.py). Beside it stand model and gate alone in this process (bench/batch.py): what is left
of a worker's CPU is the queue's. Bare commands with the same bytes say what server and driver cost at least.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from bench.batch import alone_us
from bench.machine import cpu_seconds, environment, pin, spread
from bench.report import out_option, write
from bench.service import SUBMIT_COUNT, Service, sample_contexts
from producer import Options
from producer.session.requests import prepare
from producer.transport.connection import connect
from producer.transport.link import Link, Word

FIGURES = ("enqueue_per_s", "drain_per_s", "worker_cpu_us", "server_cpu_us")
#: Requests of the bare commands, and bytes of one of their answers.
_BARE_COUNT, _ANSWER = 6_400, bytes(3_350)


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
    limits = []
    for repeat in range(repeats):
        limits.append(bare())
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
        "bare": {name: spread([one[name] for one in limits]) for name in limits[0]},
    }
    write(out, "drain", report, rows(report), note(report))


def drain(requests: int, workers: int) -> dict[str, float]:
    """One run with processes of its own."""
    with Service(workers) as service:
        total, enqueue_s = service.fill(requests)
        return {"enqueue_per_s": total / enqueue_s, **service.drain(total).figures()}


def bare() -> dict[str, float]:
    """Enqueues by XADD, 64 a write, and drains: a read of 256, then as many answers, XACK and XDEL in one
    write. Client and server have a core each."""
    found: dict[str, float] = {}
    with Service() as service:
        service.stop()
        pin(os.getpid(), {0})
        request = prepare(sample_contexts()[0], Options(), "client", service.settings).payload
        link = Link(connect(service.settings))
        link.call("XGROUP", "CREATE", "bare", "g", "0", "MKSTREAM")
        with metered(found, "enqueue", service.server_pid):
            for _ in range(_BARE_COUNT // SUBMIT_COUNT):
                link.each([("XADD", "bare", "*", "request", request)] * SUBMIT_COUNT)
        with metered(found, "drain", service.server_pid):
            read = "XREADGROUP", "GROUP", "g", "w", "COUNT", 256, "STREAMS", "bare", ">"
            while (answer := link.call(*read)) is not None:
                ids = [entry for entry, _ in answer[0][1]]
                replies: list[tuple[Word, ...]] = [("XADD", "answers", "*", "reply", _ANSWER)] * len(ids)
                link.each([*replies, ("XACK", "bare", "g", *ids), ("XDEL", "bare", *ids)])
        link.close()
    return found


@contextmanager
def metered(found: dict[str, float], name: str, server: int) -> Iterator[None]:
    """Notes what a block does a second, and the CPU of this process and of the server for each request."""
    began_s = time.perf_counter(), time.process_time(), cpu_seconds(server)
    yield
    ended_s = time.perf_counter(), time.process_time(), cpu_seconds(server)
    wall, client, own = ((b - a) / _BARE_COUNT for a, b in zip(began_s, ended_s, strict=True))
    found |= {f"{name}_per_s": 1 / wall, f"{name}_client_us": client * 1e6, f"{name}_server_us": own * 1e6}


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
    bare = {name: one["median"] for name, one in report["bare"].items()}
    limits = ", ".join(
        f"{bare[f'{name}_per_s']:,.0f} {text}/s for {bare[f'{name}_client_us']:.1f} us of the client's "
        f"CPU and {bare[f'{name}_server_us']:.1f} us of the server's"
        for name, text in (("enqueue", "enqueued"), ("drain", "drained"))
    )
    return (
        f"{report['requests']:,} requests, {report['repeats']} repeats, median (min, max), unix socket. "
        "Efficiency: drained/s over that of one worker times the cores in use. Model and gate alone take "
        f"{alone:.1f} us of CPU a context, in batches of 256 on one thread: "
        f"{alone / first['worker_cpu_us']['median']:.0%} of what one worker spends on a request. "
        f"Bare commands with the same bytes, client and server on a core each: {limits}."
    )
