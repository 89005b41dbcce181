"""python -m bench partitions: one producer over several servers, and where the next bottleneck is.

Each partition is an embedded server with one AMN worker; all share this machine, nothing is pinned when
there are two or more. Measured: enqueue, drain, and the CPU that a request costs each part. From the
costs the bounds of larger installations follow by the utilisation law (X <= capacity / demand): they are
computed, not measured, and say nothing of what hardware and networks add.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bench.machine import environment, spread
from bench.report import COLOURS, draw, facts, markdown, shown, write
from bench.service import SUBMIT_COUNT, Service, sample_contexts
from producer import PartitionedProducer, Producer

#: Bytes of a request and its answer on the wire, one way.
WIRE_BYTES = 15_602 + 3_350
LINK_BITS = 10e9
FIGURES = ("enqueue_per_s", "drain_per_s", "producer_us", "server_us", "worker_us")


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """CPU seconds that one request costs each part."""

    producer: float
    server: float
    worker: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """An installation: each producer process, server and worker has a core of its own."""

    producers: int
    partitions: int
    workers: int


@click.command("partitions")
@click.option("--partitions", default="1,2,4", show_default=True)
@click.option("--requests", default=10_000, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("var/bench"), show_default=True)
def command(partitions: str, requests: int, repeats: int, out: Path) -> None:
    """Partitions measured here and computed beyond; writes partitions.json, partitions.md and .svg."""
    surroundings = environment()
    counts = [int(count) for count in partitions.split(",")]
    runs: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    for repeat in range(repeats):
        for count in counts:
            click.echo(f"{count} partition(s), run {repeat + 1}", err=True)
            runs[count].append(measure(count, requests))
    measured = {str(n): {f: spread([run[f] for run in some]) for f in FIGURES} for n, some in runs.items()}
    one = measured[str(counts[0])]
    demand = Demand(**{part: one[f"{part}_us"]["median"] / 1e6 for part in ("producer", "server", "worker")})
    report = {
        "environment": surroundings,
        "requests": requests,
        "repeats": repeats,
        "measured": measured,
        "plants": [_plant(demand, plant) for plant in plants(demand)],
    }
    write(out, "partitions", report, table(report))
    plot(demand, out / "partitions.svg")


def measure(partitions: int, requests: int) -> dict[str, float]:
    """One fill through one producer, one drain by all workers."""
    with ExitStack() as stack:
        services = [stack.enter_context(_service(number, partitions)) for number in range(partitions)]
        for service in services:
            service.stop()
        total = -(-requests // SUBMIT_COUNT) * SUBMIT_COUNT
        before_s, own_s, started_s = _server_s(services), time.process_time(), time.perf_counter()
        _fill(services, total)
        enqueue_s = time.perf_counter() - started_s
        producer_s, meters = time.process_time() - own_s, [service.meter() for service in services]
        wanted = sum(service.ended() for service in services) + total
        started_s = time.perf_counter()
        for service in services:
            service.go()
        while sum(service.ended() for service in services) < wanted:
            time.sleep(0.005)
        drain_s = time.perf_counter() - started_s
        worker_s = sum(meter()[1] for meter in meters)
        return {
            "enqueue_per_s": total / enqueue_s,
            "drain_per_s": total / drain_s,
            "producer_us": producer_s / total * 1e6,
            "server_us": (_server_s(services) - before_s) / total * 1e6,
            "worker_us": worker_s / total * 1e6,
        }


def _service(number: int, partitions: int) -> Service:
    return Service(1, queue=f"main.p{number}", apart=partitions == 1)


def _server_s(services: Sequence[Service]) -> float:
    return sum(service.server_cpu_s() for service in services)


def _fill(services: Sequence[Service], total: int) -> None:
    """Submits to the partitions in turns; every one of them is a server of its own."""
    contexts = sample_contexts()
    producer = PartitionedProducer(services[0].url, partitions=len(services))
    producer.parts = [Producer(settings=service.settings) for service in services]
    count = SUBMIT_COUNT * len(services)  # so many a call that each part gets its usual share
    with producer:
        for first in range(0, total, count):
            producer.submit_many(
                [contexts[(first + i) % len(contexts)] for i in range(min(count, total - first))]
            )


def bounds(demand: Demand, plant: Plant) -> dict[str, float]:
    """The most requests a second that each resource lets through; the least of them is the bottleneck."""
    return {
        "producers": plant.producers / demand.producer,
        "servers": plant.partitions / demand.server,
        "workers": plant.workers / demand.worker,
        # A server's link carries each request and each answer once in and once out.
        "links of 10 Gbit/s": plant.partitions * LINK_BITS / 8 / WIRE_BYTES,
    }


def plants(demand: Demand) -> list[Plant]:
    """One server with workers until something else is full, then partitions as they are needed."""
    fed = max(1, round(demand.worker / demand.server))
    return [
        Plant(producers=1, partitions=1, workers=1),
        Plant(producers=1, partitions=1, workers=fed),
        Plant(producers=2, partitions=1, workers=2 * fed),
        Plant(producers=4, partitions=2, workers=2 * fed),
        Plant(producers=8, partitions=4, workers=4 * fed),
        Plant(producers=16, partitions=8, workers=8 * fed),
    ]


def _plant(demand: Demand, plant: Plant) -> dict[str, Any]:
    found = bounds(demand, plant)
    bottleneck = min(found, key=found.__getitem__)
    return {
        "producers": plant.producers,
        "partitions": plant.partitions,
        "workers": plant.workers,
        "most_per_s": round(found[bottleneck]),
        "bottleneck": bottleneck,
    }


def table(report: Mapping[str, Any]) -> str:
    """Markdown."""
    heads = ("partitions, a worker each", "enqueued/s, one producer", "drained/s")
    heads += ("producer CPU, us a request", "server CPU", "worker CPU")
    rows = [
        (n, *(shown(row[f], 0 if f.endswith("per_s") else 1) for f in FIGURES))
        for n, row in report["measured"].items()
    ]
    lines = [*markdown(heads, rows), "", "Computed from these costs, each process on a core of its own:", ""]
    names = ("producers", "partitions", "workers", "most_per_s", "bottleneck")
    rows = [
        tuple(f"{p[name]:,}" if name == "most_per_s" else str(p[name]) for name in names)
        for p in report["plants"]
    ]
    lines += markdown(("producers", "partitions", "workers", "at most, requests/s", "bottleneck"), rows)
    lines += ["", f"{report['requests']:,} requests, {report['repeats']} repeats. {facts(report)}"]
    return "\n".join(lines) + "\n"


def plot(demand: Demand, path: Path) -> None:
    """The bounds of one server, and of more, against the number of workers."""

    def plot_bounds(axis: Any) -> None:
        workers = list(range(1, 17))
        axis.plot(workers, [w / demand.worker for w in workers], color=COLOURS[0], label="workers")
        for n, style in ((1, "-"), (2, "--"), (4, ":")):
            axis.axhline(n / demand.server, color=COLOURS[1], linestyle=style, label=f"{n} server(s)")
            axis.axhline(n / demand.producer, color=COLOURS[2], linestyle=style, label=f"{n} producer(s)")
        axis.set(xlabel="AMN workers, a core each", ylabel="requests/s, at most (computed)")
        axis.set_ylim(0, 1.1 * 4 / min(demand.server, demand.producer))  # all lines are in it
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    draw(path, (8.5, 4), plot_bounds)
