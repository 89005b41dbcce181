"""python -m bench shadow: what the shadow evaluation costs the main path.

One AMN worker drains a full queue of the shipped sample's sequences without sampling, at 1 %, at 5 %,
and at 5 % while the shadow worker is stopped. The four take turns; each round's figures are compared
with its own run without sampling, and the median of the rounds is what counts. The AMN worker has
one core; server, shadow worker (idle class) and this process share the other one (Linux).
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click

from bench.machine import cpu_seconds, environment, pin, spread
from ops.sample import Sample
from ops.server import Server, ServerSettings
from producer import Producer, ProducerSettings
from producer.connection import connect
from producer.keys import Keys
from workers.pool import Pool, PoolSettings

SUBMIT_COUNT = 64


@dataclass(frozen=True, slots=True)
class Variant:
    """What is switched on."""

    name: str
    rate: float
    stopped: bool = False


VARIANTS = (
    Variant("off", 0.0),
    Variant("1 %", 0.01),
    Variant("5 %", 0.05),
    Variant("5 %, shadow worker stopped", 0.05, stopped=True),
)
FIGURES = ("drain_per_s", "worker_cpu_us", "server_cpu_us")


@click.command("shadow")
@click.option("--requests", default=20_000, show_default=True)
@click.option("--repeats", default=7, show_default=True)
def command(requests: int, repeats: int) -> None:
    """Measure, and print one JSON object."""
    sample = Sample.load(Path("artifacts/sample/sequences.npz"))
    runs: dict[str, list[dict[str, float]]] = {variant.name: [] for variant in VARIANTS}
    for repeat in range(repeats):
        click.echo(f"round {repeat + 1} of {repeats}", err=True)
        order = VARIANTS[repeat % len(VARIANTS) :] + VARIANTS[: repeat % len(VARIANTS)]
        for variant in order:
            runs[variant.name].append(drain(sample, variant, requests))
    report: dict[str, object] = {"requests": requests, "repeats": repeats}
    for variant in VARIANTS:
        mine = runs[variant.name]
        figures: dict[str, object] = {name: spread([run[name] for run in mine]) for name in FIGURES}
        figures["sampled"] = statistics.median(run["sampled"] for run in mine)
        for name in FIGURES:
            pairs = zip(mine, runs["off"], strict=True)
            ratio = statistics.median(run[name] / off[name] for run, off in pairs)
            figures[f"{name}_against_off"] = f"{ratio - 1:+.1%}"
        report[variant.name] = figures
    click.echo(json.dumps({**report, "environment": environment()}, indent=2))


def drain(sample: Sample, variant: Variant, requests: int) -> dict[str, float]:
    """One run with processes of its own."""
    with tempfile.TemporaryDirectory() as folder, Server(ServerSettings(data=Path(folder))) as server:
        pool = Pool({"amn": 1, "shadow": 1}, PoolSettings(url=server.url, sample_rate=variant.rate))
        settings = ProducerSettings(url=server.url, in_flight_max=requests + SUBMIT_COUNT)
        pool.start()
        try:
            pool.wait_ready()
            (worker,), (shadow,) = (pool.pids()[kind] for kind in ("amn", "shadow"))
            pin(worker, {0})
            for process in (os.getpid(), shadow, server_process(settings)):
                pin(process, {1})
            if variant.stopped:
                os.kill(shadow, signal.SIGSTOP)
            try:
                return fill_and_drain(settings, worker, sample, requests)
            finally:
                os.kill(shadow, signal.SIGCONT)
        finally:
            pin(os.getpid(), {0, 1})
            pool.drain()


def server_process(settings: ProducerSettings) -> int:
    """The server's process id."""
    client = connect(settings)
    found = int(client.info("server")["process_id"])  # type: ignore[index]
    client.close()
    return found


def fill_and_drain(
    settings: ProducerSettings, worker: int, sample: Sample, requests: int
) -> dict[str, float]:
    """Fills the queue while the AMN worker is stopped, then lets it go."""
    os.kill(worker, signal.SIGSTOP)
    total = -(-requests // SUBMIT_COUNT) * SUBMIT_COUNT
    with Producer(settings=settings) as producer:
        for first in range(0, total, SUBMIT_COUNT):
            some = range(first, first + SUBMIT_COUNT)
            producer.submit_many(
                [sample.context(i) for i in some], options=[sample.options(i, "bench") for i in some]
            )
    client, stats, server = connect(settings), Keys(settings.queue).stats, server_process(settings)
    before = cpu_seconds(worker), cpu_seconds(server)
    started_s = time.perf_counter()
    os.kill(worker, signal.SIGCONT)
    while sum(int(n or 0) for n in client.hmget(stats, ["answered", "escalated"])) < total:  # type: ignore[union-attr]
        time.sleep(0.01)
    took_s = time.perf_counter() - started_s
    after = cpu_seconds(worker), cpu_seconds(server)
    sampled = int(client.hget(stats, "shadowed") or 0)  # type: ignore[arg-type]
    client.close()
    return {
        "drain_per_s": total / took_s,
        "worker_cpu_us": (after[0] - before[0]) / total * 1e6,
        "server_cpu_us": (after[1] - before[1]) / total * 1e6,
        "sampled": sampled / total,
    }
