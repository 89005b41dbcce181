"""python -m bench shadow: what the shadow evaluation costs the main path.

One AMN worker drains a full queue of the shipped sample's sequences without sampling, at 1 %, at 5 %,
and at 5 % while the shadow worker is stopped. The four take turns; each round's figures are compared
with its own run without sampling: the median of the rounds, and the best run of each (what other
load disturbs least). AMN workers have one
core; server, shadow workers (idle class) and this process share the other one (Linux).
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

from bench.machine import environment, pin, spread
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
@click.option("--requests", default=3_000, show_default=True)
@click.option("--repeats", default=25, show_default=True)
def command(requests: int, repeats: int) -> None:
    """Measure, and print one JSON object."""
    sample = Sample.load(Path("artifacts/sample/sequences.npz"))
    runs: dict[str, list[dict[str, float]]] = {variant.name: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder, Server(ServerSettings(data=Path(folder))) as server:
        service = Service(server)
        try:
            service.start()
            for repeat in range(repeats + 1):
                click.echo(f"round {repeat} of {repeats}", err=True)
                at = repeat % len(VARIANTS)
                for variant in (*VARIANTS[at:], *VARIANTS[:at]):
                    run = service.drain(sample, variant, requests, f"bench{repeat}")
                    if repeat:  # the first round warms up
                        runs[variant.name].append(run)
        finally:
            service.stop()
    report: dict[str, object] = {"requests": requests, "repeats": repeats}
    for variant in VARIANTS:
        mine = runs[variant.name]
        figures: dict[str, object] = {name: spread([run[name] for run in mine]) for name in FIGURES}
        figures["sampled"] = statistics.median(run["sampled"] for run in mine)
        for name in FIGURES:
            pairs = zip(mine, runs["off"], strict=True)
            ratio = statistics.median(run[name] / off[name] for run, off in pairs)
            best = max if name == "drain_per_s" else min
            least = best(run[name] for run in mine) / best(run[name] for run in runs["off"])
            figures[f"{name}_against_off"] = {"median": f"{ratio - 1:+.1%}", "best": f"{least - 1:+.1%}"}
        report[variant.name] = figures
    click.echo(json.dumps({**report, "environment": environment()}, indent=2))


class Service:
    """One server, and for each rate a queue with an AMN worker and a shadow worker of its own."""

    def __init__(self, server: Server) -> None:
        self.pools: dict[float, Pool] = {}
        self.url = server.url
        for rate in sorted({variant.rate for variant in VARIANTS}):
            counts = {"amn": 1, "shadow": 1} if rate else {"amn": 1}
            self.pools[rate] = Pool(
                counts, PoolSettings(url=server.url, queue=self.queue(rate), sample_rate=rate)
            )

    @staticmethod
    def queue(rate: float) -> str:
        """Its name."""
        return f"bench-{rate:g}"

    def start(self) -> None:
        """Starts everything, and gives it cores."""
        for pool in self.pools.values():
            pool.start()
        for pool in self.pools.values():
            pool.wait_ready()
            for kind, processes in pool.pids().items():
                for process in processes:
                    pin(process, {0} if kind == "amn" else {1})
        self.server = server_process(self.settings(0.0, 1))
        for process in (self.server, os.getpid()):
            pin(process, {1})

    def stop(self) -> None:
        """Ends the workers."""
        pin(os.getpid(), {0, 1})
        for pool in self.pools.values():
            pool.drain()

    def settings(self, rate: float, requests: int) -> ProducerSettings:
        """Of a producer for one rate's queue."""
        limit = requests + SUBMIT_COUNT
        return ProducerSettings(url=self.url, queue=self.queue(rate), in_flight_max=limit)

    def drain(self, sample: Sample, variant: Variant, requests: int, run: str) -> dict[str, float]:
        """Fills the variant's queue while its AMN worker is stopped, then lets it go."""
        pids = self.pools[variant.rate].pids()
        stopped = pids["shadow"] if variant.stopped else []
        try:
            for process in (*stopped, pids["amn"][0]):
                os.kill(process, signal.SIGSTOP)
            settings = self.settings(variant.rate, requests)
            fill(settings, sample, requests, run)
            return self._drained(settings, pids["amn"][0], requests)
        finally:
            for process in (*stopped, pids["amn"][0]):
                os.kill(process, signal.SIGCONT)

    def _drained(self, settings: ProducerSettings, worker: int, requests: int) -> dict[str, float]:
        client, keys = connect(settings), Keys(settings.queue)
        names = ["answered", "escalated", "shadowed"]

        def counted() -> list[int]:
            return [int(n or 0) for n in client.hmget(keys.stats, names)]  # type: ignore[union-attr]

        first, before = counted(), (cpu_s(worker), cpu_s(self.server))
        started_s = time.perf_counter()
        os.kill(worker, signal.SIGCONT)
        while sum(counted()[:2]) - sum(first[:2]) < requests:
            time.sleep(0.01)
        took_s = time.perf_counter() - started_s
        used_s = cpu_s(worker) - before[0], cpu_s(self.server) - before[1]
        sampled = counted()[2] - first[2]
        for stream in (keys.shadow, keys.fallback):
            client.xtrim(stream, maxlen=0, approximate=False)
        client.delete(keys.fallback_bytes)
        client.close()
        return {
            "drain_per_s": requests / took_s,
            "worker_cpu_us": used_s[0] / requests * 1e6,
            "server_cpu_us": used_s[1] / requests * 1e6,
            "sampled": sampled / requests,
        }


def fill(settings: ProducerSettings, sample: Sample, requests: int, run: str) -> None:
    """Submits the sample's sequences from the beginning."""
    with Producer(settings=settings) as producer:
        for first in range(0, requests, SUBMIT_COUNT):
            some = range(first, min(first + SUBMIT_COUNT, requests))
            options = [sample.options(i, run) for i in some]
            producer.submit_many([sample.context(i) for i in some], options=options)


def cpu_s(process: int) -> float:
    """Time on a core so far, of all threads, by the scheduler's own clock (Linux)."""
    tasks = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def server_process(settings: ProducerSettings) -> int:
    """The server's process id."""
    client = connect(settings)
    found = int(client.info("server")["process_id"])  # type: ignore[index]
    client.close()
    return found
