"""python -m bench.peers.pace MODULE --rates 100,500 --seconds 8: latency of one system, one JSON line.

Requests are sent at Poisson times by the system's own call for one request. The job stamps the time at
which it has computed the answer, so that a latency here is from due to computed: storing the answer and
fetching it, which ours includes, is left out, in the others' favour. A rate that the system cannot keep
up with ends the run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.peers.runner import TIMEOUT_S, WARM_UP, start, stop
from bench.peers.work import CONTEXT_BYTES

CLOSED = 300
#: The last answer comes later than the last request by more than this allows: the system is saturated.
KEPT_UP = 0.9


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--contexts", required=True, help="raw float32 contexts, one after the other")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rates", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", required=True)
    options = parser.parse_args()
    with open(options.contexts, "rb") as file:
        data = file.read()
    distinct = [data[i : i + CONTEXT_BYTES] for i in range(0, len(data), CONTEXT_BYTES)]
    peer = importlib.import_module(f"bench.peers.{options.module}")
    workers = start(peer, options.workers, options.log)
    try:
        for job in peer.submit(distinct[:WARM_UP]):
            fetched(peer, job)
        closed = [one(peer, context) for context in distinct[:CLOSED]]
        rows = []
        for rate in (float(text) for text in options.rates.split(",")):
            rows.append(paced(peer, distinct, rate, options.seconds, options.seed))
            if not rows[-1]["kept_up"]:
                break
        sys.stdout.write(json.dumps({"closed_ms": closed, "rates": rows}) + "\n")
    finally:
        stop(workers)


def one(peer: Any, context: bytes) -> float:
    """Milliseconds from the submit of one request, alone in the system, to its computed answer."""
    started_s = time.time()
    (job,) = peer.submit([context])
    return (fetched(peer, job) - started_s) * 1000


def paced(peer: Any, distinct: Sequence[bytes], rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """One rate, open loop."""
    count = max(int(rate * seconds), 100)
    due_s = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))
    jobs: list[Any] = []
    started_s = time.time()
    for i in range(count):
        pause_s = started_s + due_s[i] - time.time()
        if pause_s > 0:
            time.sleep(pause_s)
        jobs += peer.submit([distinct[i % len(distinct)]])
    stamps_s = np.array([fetched(peer, job) for job in jobs]) - started_s
    return {
        "rate": rate,
        "answered_per_s": count / float(stamps_s.max()),
        "kept_up": bool(due_s[-1] / stamps_s.max() > KEPT_UP),
        "ms": [round(float(ms), 3) for ms in (stamps_s - due_s) * 1000],
    }


def fetched(peer: Any, job: Any) -> float:
    """The time at the end of a stamped answer, as soon as it is there.

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


if __name__ == "__main__":
    main()
