"""One side of `python -m bench lone`: a service of the checkout in the current folder, and its client.

It is run as a file, so that an older checkout, which need not have it, can be measured too. Each line that it
reads is JSON of a way and its numbers, and is answered with a line of figures.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np

from bench.machine import pin
from bench.service import Service, sample_contexts
from producer import Options, Producer

_CONTEXTS = sample_contexts()
_OPTIONS = Options(provisional=True)


def closed(service: Service, producer: Producer, count: int) -> dict[str, Any]:
    """One request at a time: submit, wait, read."""
    waited_ms, read, own_s = [], service.meter(), time.process_time()
    for i in range(count):
        started_s = time.perf_counter()
        producer.predict(_CONTEXTS[i % len(_CONTEXTS)], options=_OPTIONS)
        waited_ms.append((time.perf_counter() - started_s) * 1000)
    return _figures(read, own_s, waited_ms)


def opened(service: Service, producer: Producer, count: int, rate: float, seed: int) -> dict[str, Any]:
    """Poisson arrivals; the clock of a request starts when it is due."""
    handles, late_ms, read, own_s = [], [], service.meter(), time.process_time()
    for i, at_s in enumerate(_due_s(count, rate, seed)):
        late_ms.append((time.perf_counter() - at_s) * 1000)
        handles.append(producer.submit(_CONTEXTS[i % len(_CONTEXTS)], options=_OPTIONS))
    for handle in handles:
        handle.first()
    waited_ms = [late + handle.first_latency_ms for late, handle in zip(late_ms, handles, strict=True)]
    return _figures(read, own_s, waited_ms)


def pinged(service: Service, _: Producer, count: int, rate: float, seed: int) -> dict[str, Any]:
    """A bare PING at the same times: what it takes to wake a server and a client."""
    waited_ms, read, own_s = [], service.meter(), time.process_time()
    for at_s in _due_s(count, rate, seed):
        service.client.ping()
        waited_ms.append((time.perf_counter() - at_s) * 1000)
    return _figures(read, own_s, waited_ms)


def _due_s(count: int, rate: float, seed: int) -> Iterator[float]:
    """Yield Poisson times of the monotonic clock, each when it has come."""
    due_s = time.perf_counter() + 0.02 + np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))
    for at_s in due_s.tolist():
        time.sleep(max(at_s - time.perf_counter(), 0))
        yield at_s


def _figures(read: Callable[[], Any], own_s: float, waited_ms: list[float]) -> dict[str, Any]:
    spent_s, (_, worker_s, server_s) = time.process_time() - own_s, read().tolist()
    names = "worker_us", "server_us", "client_us"
    spent_us = [1e6 * one / len(waited_ms) for one in (worker_s, server_s, spent_s)]
    return {**dict(zip(names, spent_us, strict=True)), "ms": waited_ms}


def main() -> None:
    """Serve until the input ends."""
    with Service() as service:
        everywhere = set(range(os.cpu_count() or 1))
        for pid in (*service.pids, service.server_pid, os.getpid()):
            pin(pid, everywhere)
        with Producer(settings=service.settings) as producer:
            closed(service, producer, 300)
            gc.collect()
            gc.freeze()
            click.echo("{}")  # ready
            sys.stdout.flush()
            for line in sys.stdin:
                way, *numbers = json.loads(line)
                if (run := {"closed": closed, "open": opened, "ping": pinged}.get(way)) is not None:
                    found = run(service, producer, *numbers)
                else:
                    drained = service.drain(service.fill(*numbers)[0])
                    service.forget()
                    found = drained.figures()
                click.echo(json.dumps(found))
                sys.stdout.flush()


if __name__ == "__main__":
    main()
