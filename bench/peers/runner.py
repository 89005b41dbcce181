"""python -m bench.peers.runner MODULE: one measured run of one system, printed as one JSON line.

With --requests it starts the workers, warms them with a few jobs, stops them, fills the queue, lets them go,
waits until every answer is stored, and compares some with a direct prediction.

With --rates requests are sent at Poisson times by the system's own call for one request. The job stamps the
time at which it has computed the answer, so that a latency here is from due to computed: storing the answer
and fetching it, which ours includes, is left out, in the others' favour. A rate that the system cannot keep
up with ends the run.

The harness (bench/systems.py) gives each run an empty server of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import inspect
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import redis

from bench.peers.work import CONTEXT_BYTES, URL, answer

WARM_UP = 64
CHECKED = 32
CLOSED = 300
TOLERANCE = 1e-5
TIMEOUT_S = 120.0
#: The last answer comes later than the last request by more than this allows: the system is saturated.
KEPT_UP = 0.9
Workers = Sequence[subprocess.Popen[bytes]]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--contexts", required=True, help="raw float32 contexts, one after the other")
    parser.add_argument("--log", required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--requests", type=int, help="measure throughput with so many")
    parser.add_argument("--rates", help="measure latency at these requests a second: 100,500")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each rate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = Path(options.contexts).read_bytes()
    distinct = [data[i : i + CONTEXT_BYTES] for i in range(0, len(data), CONTEXT_BYTES)]
    peer = importlib.import_module(f"bench.peers.{options.module}")
    peer.submit, peer.result = ended(peer.submit), ended(peer.result)
    workers = start(peer, options.workers, options.log)
    try:
        row = (
            paces(peer, distinct, options)
            if options.rates
            else drain(peer, workers, distinct, options.requests)
        )
        print(json.dumps(row))
    finally:
        stop(workers)


def ended(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return the call, in a loop of its own where it is a coroutine's."""
    return (lambda *words: asyncio.run(call(*words))) if inspect.iscoroutinefunction(call) else call


def drain(peer: Any, workers: Workers, distinct: Sequence[bytes], count: int) -> dict[str, float | int]:
    """Measure one fill and one drain.

    Raises:
        RuntimeError: An answer differs from the direct prediction, or the drain takes minutes.
    """
    client = redis.Redis.from_url(URL)
    began = finished(peer, client)
    peer.submit([distinct[i % len(distinct)] for i in range(WARM_UP)])
    wait(peer, client, began, WARM_UP, workers)
    time.sleep(0.5)
    began = finished(peer, client)
    signal_all(workers, signal.SIGSTOP)
    contexts = [distinct[i % len(distinct)] for i in range(count)]
    started_s = time.perf_counter()
    jobs = peer.submit(contexts)
    enqueue_s = time.perf_counter() - started_s
    cpu_s, started_s = group_cpu_s(workers), time.perf_counter()
    signal_all(workers, signal.SIGCONT)
    wait(peer, client, began, count, workers)
    drain_s = time.perf_counter() - started_s
    cpu_s = group_cpu_s(workers) - cpu_s
    step = max(count // CHECKED, 1)
    for i in range(0, count, step):
        check(peer.result(jobs[i]), answer(contexts[i]), i)
    return {
        "requests": count,
        "enqueue_per_s": count / enqueue_s,
        "drain_per_s": count / drain_s,
        "worker_cpu_us": cpu_s / count * 1e6,
        "checked": len(range(0, count, step)),
    }


def paces(peer: Any, distinct: Sequence[bytes], options: argparse.Namespace) -> dict[str, Any]:
    """Measure latency: one request at a time, then each rate."""
    for job in peer.submit(distinct[:WARM_UP]):
        fetched(peer, job)
    closed, rows = [], []
    for context in distinct[:CLOSED]:
        started_s = time.time()
        (job,) = peer.submit([context])
        closed.append((fetched(peer, job) - started_s) * 1000)
    for rate in map(float, options.rates.split(",")):
        rows.append(paced(peer, distinct, rate, options.seconds, options.seed))
        if not rows[-1]["kept_up"]:
            break
    return {"closed_ms": closed, "rates": rows}


def paced(peer: Any, distinct: Sequence[bytes], rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Measure one rate, open loop."""
    count = max(int(rate * seconds), 100)
    due_s = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))
    jobs: list[Any] = []
    started_s = time.time()
    for i in range(count):
        time.sleep(max(started_s + due_s[i] - time.time(), 0))
        jobs += peer.submit([distinct[i % len(distinct)]])
    stamps_s = np.array([fetched(peer, job) for job in jobs]) - started_s
    return {
        "rate": rate,
        "answered_per_s": count / float(stamps_s.max()),
        "kept_up": bool(due_s[-1] / stamps_s.max() > KEPT_UP),
        "ms": [round(float(ms), 3) for ms in (stamps_s - due_s) * 1000],
    }


def fetched(peer: Any, job: Any) -> float:
    """Return the time at the end of a stamped answer, as soon as it is there.

    Raises:
        RuntimeError: It does not come.
    """
    give_up_at_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return float(struct.unpack("<d", peer.result(job)[-8:])[0])
        except Exception as error:  # each library says in its own way that there is none yet
            if time.monotonic() > give_up_at_s:
                raise RuntimeError(f"no answer after {TIMEOUT_S:g} s") from error
        time.sleep(0.001)


def group_cpu_s(workers: Workers) -> float:
    """Return CPU seconds of the workers, of all that they started, and of what of it has ended."""
    groups, ticks = {worker.pid for worker in workers}, 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended just now
            fields = path.read_text().rsplit(") ", 1)[1].split()
            if int(fields[2]) in groups:
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def check(got: bytes, expected: bytes, index: int) -> None:
    """Raise when an answer is not the direct prediction."""
    a, b = np.frombuffer(got, "<f4"), np.frombuffer(expected, "<f4")
    if a.shape != b.shape or not np.allclose(a, b, atol=TOLERANCE):
        raise RuntimeError(f"answer {index} differs from the direct prediction")


def start(peer: Any, count: int, log: str) -> list[subprocess.Popen[bytes]]:
    """Start worker processes, each leading a group of its own."""
    environment = {**os.environ, "REDIS_URL": URL, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, *peer.COMMAND]
    with open(log, "ab") as file:
        files: Any = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        workers = [subprocess.Popen(command, env=environment, process_group=0, **files) for _ in range(count)]
    core = os.environ.get("BENCH_CORE")
    if core and hasattr(os, "sched_setaffinity"):
        for worker in workers:  # what it starts later inherits this
            os.sched_setaffinity(worker.pid, {int(core)})
    return workers


def finished(peer: Any, client: redis.Redis) -> int:
    """Count jobs that have their answer stored; 0 for a system that tells only how many wait."""
    return 0 if hasattr(peer, "waiting") else int(peer.finished(client))


def wait(peer: Any, client: redis.Redis, began: int, count: int, workers: Workers) -> None:
    """Wait until the `count` jobs just submitted have their answers."""
    give_up_at_s = time.monotonic() + TIMEOUT_S
    while True:
        done = count - peer.waiting(client) if hasattr(peer, "waiting") else peer.finished(client) - began
        if done >= count:
            return
        if any(worker.poll() is not None for worker in workers):
            raise RuntimeError("a worker ended by itself; see its log")
        if time.monotonic() > give_up_at_s:
            raise RuntimeError(f"{done} of {count} answers after {TIMEOUT_S:g} s")
        time.sleep(0.01)


def signal_all(workers: Workers, number: int) -> None:
    """Send a signal to every process of every worker."""
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, number)


def stop(workers: Workers) -> None:
    """End them; nothing is lost that anybody wants."""
    signal_all(workers, signal.SIGKILL)
    for worker in workers:
        worker.wait()


if __name__ == "__main__":
    main()
