"""python -m bench shadow: what the shadow evaluation costs the main path.

One AMN worker drains a full queue of the shipped sample's sequences. Each variant is compared with a
worker that does not sample, in the order A B B A, so that a machine that slows down favours neither.
"off again" is such a worker too, a process of its own: what differs there is the noise of this
measurement, and no smaller difference says anything. AMN workers have one core; server, shadow
workers (idle class) and this process share the other one (Linux). Where the shadow worker runs, the
throughput therefore holds its share of that core as well; the AMN worker's CPU time a request does not.
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
from ops.local.server import Server, ServerSettings
from ops.sample import Sample
from producer import Producer, ProducerSettings
from producer.keys import Keys
from producer.transport.connection import connect
from workers.pool.pool import Pool
from workers.pool.settings import PoolSettings

SUBMIT_COUNT = 64


@dataclass(frozen=True, slots=True)
class Variant:
    """What is switched on, and on which queue: each has workers of its own."""

    name: str
    queue: str
    rate: float
    stopped: bool = False


OFF, AGAIN = Variant("off", "off", 0.0), Variant("off again", "off-again", 0.0)
VARIANTS = (
    AGAIN,
    Variant("1 %", "1", 0.01),
    Variant("5 %", "5", 0.05),
    Variant("5 %, shadow worker stopped", "5", 0.05, stopped=True),
)
FIGURES = ("drain_per_s", "worker_cpu_us", "server_cpu_us", "main_path_cpu_us")
Run = dict[str, float]


@click.command("shadow")
@click.option("--requests", default=3_000, show_default=True, help="Of one run.")
@click.option("--repeats", default=12, show_default=True, help="A B B A of each variant.")
def command(requests: int, repeats: int) -> None:
    """Measure, and print one JSON object."""
    sample = Sample.load(Path("artifacts/sample/sequences.npz"))
    found: dict[str, list[tuple[Run, Run]]] = {variant.name: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder, Server(ServerSettings(data=Path(folder))) as server:
        service = Service(server)
        try:
            service.start()
            for repeat in range(repeats + 1):
                click.echo(f"round {repeat} of {repeats}", err=True)
                at = repeat % len(VARIANTS)
                for variant in (*VARIANTS[at:], *VARIANTS[:at]):
                    order = (OFF, variant, variant, OFF)
                    a, b, c, d = [service.drain(sample, one, requests, f"bench{repeat}") for one in order]
                    if repeat:  # the first round warms up
                        found[variant.name].append((_mean(a, d), _mean(b, c)))
        finally:
            service.stop()
    offs = [off for pairs in found.values() for off, _ in pairs]
    report: dict[str, object] = {"requests": requests, "repeats": repeats}
    report["off"] = {name: spread([run[name] for run in offs]) for name in FIGURES}
    report |= {name: _compared(pairs) for name, pairs in found.items()}
    click.echo(json.dumps({**report, "environment": environment()}, indent=2))


def _mean(one: Run, other: Run) -> Run:
    return {name: (one[name] + other[name]) / 2 for name in one}


def _compared(pairs: list[tuple[Run, Run]]) -> dict[str, object]:
    """Change against the runs without sampling beside it: median and quartiles over the rounds."""
    figures: dict[str, object] = {"sampled": statistics.median(on["sampled"] for _, on in pairs)}
    for name in FIGURES:
        changes = sorted(on[name] / off[name] - 1 for off, on in pairs)
        low, _, high = statistics.quantiles(changes, n=4) if len(changes) > 1 else [changes[0]] * 3
        figures[name] = {
            "change": f"{statistics.median(changes):+.1%}",
            "quartiles": f"{low:+.1%} to {high:+.1%}",
        }
    return figures


class Service:
    """One server, and for each queue an AMN worker and, where it samples, a shadow worker."""

    def __init__(self, server: Server) -> None:
        self.pools: dict[str, Pool] = {}
        self.url = server.url
        for variant in (OFF, *VARIANTS):
            if variant.queue not in self.pools:
                counts = {"amn": 1, "shadow": 1} if variant.rate else {"amn": 1}
                settings = PoolSettings(
                    url=server.url, queue=f"bench-{variant.queue}", sample_rate=variant.rate
                )
                self.pools[variant.queue] = Pool(counts, settings)

    def start(self) -> None:
        """Starts everything, and gives it cores."""
        for pool in self.pools.values():
            pool.start()
        for pool in self.pools.values():
            pool.wait_ready()
            for kind, processes in pool.pids().items():
                for process in processes:
                    pin(process, {0} if kind == "amn" else {1})
        self.server = server_process(self.settings(OFF, 1))
        for process in (self.server, os.getpid()):
            pin(process, {1})

    def stop(self) -> None:
        """Ends the workers."""
        pin(os.getpid(), {0, 1})
        for pool in self.pools.values():
            pool.drain()

    def settings(self, variant: Variant, requests: int) -> ProducerSettings:
        """Of a producer for the variant's queue."""
        limit = requests + SUBMIT_COUNT
        return ProducerSettings(url=self.url, queue=f"bench-{variant.queue}", in_flight_max=limit)

    def drain(self, sample: Sample, variant: Variant, requests: int, run: str) -> Run:
        """Fills the variant's queue while its AMN worker is stopped, then lets it go."""
        pids = self.pools[variant.queue].pids()
        stopped = pids["shadow"] if variant.stopped else []
        try:
            for process in (*stopped, pids["amn"][0]):
                os.kill(process, signal.SIGSTOP)
            settings = self.settings(variant, requests)
            fill(settings, sample, requests, run)
            return self._drained(settings, pids["amn"][0], requests)
        finally:
            for process in (*stopped, pids["amn"][0]):
                os.kill(process, signal.SIGCONT)

    def _drained(self, settings: ProducerSettings, worker: int, requests: int) -> Run:
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
            "main_path_cpu_us": sum(used_s) / requests * 1e6,
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
