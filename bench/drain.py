"""python -m bench drain: how fast one AMN worker on one core drains a queue.

A Valkey server and this process share one core, the worker has the other one (Linux; elsewhere
nothing is pinned). The worker is stopped while the queue is filled with single-context requests of
the shipped sample (15,360-byte contexts), then drains it: model, gate on the shipped bank, policy,
answers stored. Enqueueing is timed apart. Beside it, in the same process of measuring, the model and
the gate alone at the worker's batch size: the share that the queue costs is what is left.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from bench.machine import cpu_seconds, environment, pin, spread
from ops.sample import Sample
from ops.server import Server, ServerSettings
from producer import Producer, ProducerSettings
from producer.connection import connect
from producer.keys import Keys
from workers.pool import Pool, PoolSettings

SUBMIT_COUNT = 64
BATCH = 256


@click.command("drain")
@click.option("--requests", default=20_000, show_default=True)
@click.option("--repeats", default=5, show_default=True)
def command(requests: int, repeats: int) -> None:
    """Measure, and print one JSON object."""
    sample = Sample.load(Path("artifacts/sample/sequences.npz"))
    contexts = np.stack([sample.context(i) for i in range(len(sample))])
    runs = []
    for repeat in range(repeats):
        click.echo(f"run {repeat + 1} of {repeats}", err=True)
        runs.append(drain(contexts, requests))
    names = ("enqueue_per_s", "drain_per_s", "worker_cpu_us")
    summary = {name: spread([run[name] for run in runs]) for name in names}
    alone = model_alone(contexts)
    click.echo(json.dumps({"requests": requests, **summary, **alone, "environment": environment()}, indent=2))


def drain(contexts: NDArray[np.float32], requests: int) -> dict[str, float]:
    """One run with processes of its own."""
    with tempfile.TemporaryDirectory() as folder, Server(ServerSettings(data=Path(folder))) as server:
        pool = Pool({"amn": 1}, PoolSettings(url=server.url))
        settings = ProducerSettings(url=server.url, in_flight_max=requests + SUBMIT_COUNT)
        pool.start()
        try:
            pool.wait_ready()
            worker = pool.pids()["amn"][0]
            pin(worker, {0})
            pin(os.getpid(), {1})
            return fill_and_drain(settings, worker, contexts, requests)
        finally:
            pin(os.getpid(), {0, 1})
            pool.drain()


def fill_and_drain(
    settings: ProducerSettings, worker: int, contexts: NDArray[np.float32], requests: int
) -> dict[str, float]:
    """Fills the queue while the worker is stopped, then lets it go."""
    os.kill(worker, signal.SIGSTOP)
    total = -(-requests // SUBMIT_COUNT) * SUBMIT_COUNT
    with Producer(settings=settings) as producer:
        started_s = time.perf_counter()
        for first in range(0, total, SUBMIT_COUNT):
            producer.submit_many([contexts[(first + i) % len(contexts)] for i in range(SUBMIT_COUNT)])
        enqueue_s = time.perf_counter() - started_s
    client, stats = connect(settings), Keys(settings.queue).stats
    cpu_s, started_s = cpu_seconds(worker), time.perf_counter()
    os.kill(worker, signal.SIGCONT)
    while sum(int(n or 0) for n in client.hmget(stats, ["answered", "escalated"])) < total:  # type: ignore[union-attr]
        time.sleep(0.01)
    drain_s = time.perf_counter() - started_s
    client.close()
    return {
        "enqueue_per_s": total / enqueue_s,
        "drain_per_s": total / drain_s,
        "worker_cpu_us": (cpu_seconds(worker) - cpu_s) / total * 1e6,
    }


def model_alone(contexts: NDArray[np.float32]) -> dict[str, float]:
    """Microseconds a context for the model and for the gate, in the worker's batches, one thread."""
    import torch
    from threadpoolctl import threadpool_limits

    from amn.predictor import Predictor

    torch.set_num_threads(1)
    root = Path("artifacts/lvm")
    predictor = Predictor.open(root / "production_model", root / "reference_bank")
    assert predictor.bank is not None
    batch = np.ascontiguousarray(contexts[:BATCH])
    model_s, gate_s = [], []
    with threadpool_limits(1):
        for _ in range(100):
            started_s = time.perf_counter()
            vectors = predictor.forward(batch)
            computed_s = time.perf_counter()
            predictor.bank.top2(vectors)
            gate_s.append(time.perf_counter() - computed_s)
            model_s.append(computed_s - started_s)
    return {
        "model_us": round(statistics.median(model_s) / BATCH * 1e6, 1),
        "gate_us": round(statistics.median(gate_s) / BATCH * 1e6, 1),
    }
