"""Warm-up, traffic, counters and clean-up of one measured run."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from rich.console import Console

from ops import console, stages
from ops.health import server
from ops.health.counters import read_counters
from ops.local.stack import Stack
from ops.run.summary import environment, percentiles, summarize
from ops.run.traffic import TrafficSender, TrafficSettings
from ops.sample import Sample
from producer import Producer
from producer.keys import Keys
from producer.options import Options
from producer.settings import ProducerSettings
from producer.transport.connection import connect, driver_errors

#: Within this time the workers have told the times of their stages.
_TOLD_S = 1.2


def measure(
    stack: Stack, sample: Sample, settings: TrafficSettings, warm_up: int, kill_worker: bool
) -> dict[str, Any]:
    """Sends traffic to a stack that is up, and returns the summary.

    Args:
        warm_up: Requests before, which are not measured.
        kill_worker: True to kill an AMN worker half-way.

    Raises:
        QueueError: The server went away, or the warm-up got no answers.
    """
    notes = console.err()
    client = ProducerSettings(url=stack.settings.url, queue=stack.settings.queue, stages=True)
    keys = Keys(client.queue)
    with (
        contextlib.closing(connect(client)) as admin,
        Producer(settings=client) as producer,
        driver_errors(client.url),
    ):
        with notes.status("warming up"):
            _warm_up(producer, sample, warm_up)
        time.sleep(_TOLD_S)
        before = read_counters(admin, keys)
        timed = stages.read_total(admin, keys) + producer.stages
        traffic = TrafficSender(producer, sample, settings)
        with console.Bar("requests") as bar, _no_collection_pauses():
            record = traffic.run(
                lambda: _draw(bar, traffic), lambda: _kill_worker(stack, notes) if kill_worker else None
            )
        stack.drain()  # a second answer to anything would be here now, and is counted
        if stack.pool is None:
            time.sleep(_TOLD_S)
        after = read_counters(admin, keys)
        about, _ = server.read(admin, with_limits=False)
        return summarize(
            record,
            sample,
            shadowed=after.get("shadowed", 0) - before.get("shadowed", 0),
            lost_leases=after.get("lost", 0) - before.get("lost", 0),
            duplicates=producer.stray_replies,
            warm_up=warm_up,
            stages_ms=stages.shown(stages.grown(timed, stages.read_total(admin, keys) + producer.stages)),
            worker_restarts=stack.pool.restarts if stack.pool else 0,
            environment=environment(f"{about.name} {about.version}", stack.counts, settings.rate),
        )


def remove_queue(stack: Stack) -> None:
    """Removes the run's own queue from a server that others use too."""
    client = ProducerSettings(url=stack.settings.url, queue=stack.settings.queue)
    stack.drain()
    with contextlib.suppress(redis.RedisError), contextlib.closing(connect(client)) as admin:
        for key in admin.scan_iter(match=f"amn:{{{client.queue}}}:*", count=1000):
            admin.unlink(key)


def _warm_up(producer: Producer, sample: Sample, count: int) -> None:
    """Sends a few requests on the measured path, outside of any sequence; never sampled as one."""
    for first in range(0, count, 16):
        numbers = range(first, min(first + 16, count))
        handles = producer.submit_many([sample.context(i) for i in numbers], options=Options(), block=True)
        for handle in handles:
            handle.result()


def _kill_worker(stack: Stack, notes: Console) -> None:
    for pid in (stack.pool.pids()["amn"] if stack.pool else [])[:1]:
        os.kill(pid, signal.SIGKILL)
        notes.print(f"killed AMN worker {pid} (SIGKILL) half-way")


@contextmanager
def _no_collection_pauses() -> Iterator[None]:
    """A full garbage collection walks everything that was ever imported: tens of milliseconds that
    would be booked on the queue."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _draw(bar: console.Bar, traffic: TrafficSender) -> None:
    """Draws how many were answered, and the latency of the last thousand, if there is a terminal."""
    if bar.visible:
        record = traffic.record
        p95 = percentiles(record.amn_ms[max(0, traffic.sent - 1000) : traffic.sent])["p95"]
        note = "" if p95 is None else f"p95 {p95:.2f} ms, {record.failed} failed"
        bar.draw("answering", record.ended, record.requests, note)
