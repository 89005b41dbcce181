"""python -m bench.peers.runner MODULE --requests N --workers W: one measured drain of one system.

Starts the workers, warms them with a few jobs, stops them, fills the queue, lets them go, waits
until every answer is stored, compares some with a direct prediction, and prints one JSON line.
The harness (`bench/compare.py`) gives each run an empty server of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import redis

from bench.peers.work import CONTEXT_BYTES, URL, answer

WARM_UP = 64
CHECKED = 32
TOLERANCE = 1e-5
TIMEOUT_S = 120.0


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--contexts", required=True, help="raw float32 contexts, one after the other")
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--log", required=True)
    options = parser.parse_args()
    with open(options.contexts, "rb") as file:
        data = file.read()
    distinct = [data[i : i + CONTEXT_BYTES] for i in range(0, len(data), CONTEXT_BYTES)]
    peer = importlib.import_module(f"bench.peers.{options.module}")
    workers = start(peer, options.workers, options.log)
    try:
        print(json.dumps(measure(peer, workers, distinct, options.requests)))
    finally:
        stop(workers)


def measure(
    peer: Any, workers: Sequence[subprocess.Popen[bytes]], distinct: Sequence[bytes], count: int
) -> dict[str, float | int]:
    """One fill and one drain.

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


def group_cpu_s(workers: Sequence[subprocess.Popen[bytes]]) -> float:
    """CPU seconds of the workers, of all that they started, and of what of it has ended."""
    groups, ticks = {worker.pid for worker in workers}, 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended just now
            fields = path.read_text().rsplit(") ", 1)[1].split()
            if int(fields[2]) in groups:
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def check(got: bytes, expected: bytes, index: int) -> None:
    """Raises when an answer is not the direct prediction."""
    a, b = np.frombuffer(got, "<f4"), np.frombuffer(expected, "<f4")
    if a.shape != b.shape or not np.allclose(a, b, atol=TOLERANCE):
        raise RuntimeError(f"answer {index} differs from the direct prediction")


def start(peer: Any, count: int, log: str) -> list[subprocess.Popen[bytes]]:
    """Worker processes, each leading a group of its own."""
    environment = {**os.environ, "REDIS_URL": URL, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, *peer.COMMAND]
    with open(log, "ab") as file:
        workers = [
            subprocess.Popen(
                command, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL, process_group=0
            )
            for _ in range(count)
        ]
    core = os.environ.get("BENCH_CORE")
    if core and hasattr(os, "sched_setaffinity"):
        for worker in workers:  # what it starts later inherits this
            os.sched_setaffinity(worker.pid, {int(core)})
    return workers


def finished(peer: Any, client: redis.Redis) -> int:
    """Jobs that have their answer stored; 0 for a system that tells only how many wait."""
    return 0 if hasattr(peer, "waiting") else int(peer.finished(client))


def wait(
    peer: Any,
    client: redis.Redis,
    began: int,
    count: int,
    workers: Sequence[subprocess.Popen[bytes]],
) -> None:
    """Until the `count` jobs just submitted have their answers."""
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


def signal_all(workers: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    """To every process of every worker."""
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, number)


def stop(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends them; nothing is lost that anybody wants."""
    signal_all(workers, signal.SIGKILL)
    for worker in workers:
        worker.wait()


if __name__ == "__main__":
    main()
