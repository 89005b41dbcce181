"""Warm-up, traffic, counters and clean-up of one measured run."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
from rich.console import Console

from ops import console
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """One run.

    Attributes:
        traffic: What is sent.    warm_up: Requests before, not measured.
        kill_worker: True to kill an AMN worker half-way.
        own_queue: True to remove the queue's keys at the end.
    """

    traffic: TrafficSettings
    warm_up: int = 200
    kill_worker: bool = False
    own_queue: bool = False


def measure(stack: Stack, sample: Sample, plan: RunPlan, notes: Console) -> dict[str, Any]:
    """Runs the plan on a stack that is up, and returns its summary.

    Raises:
        QueueError: The server went away, or the warm-up got no answers.
    """
    settings = ProducerSettings(url=stack.url, queue=stack.settings.queue)
    keys = Keys(settings.queue)
    admin = connect(settings)
    try:
        with Producer(settings=settings) as producer, driver_errors(settings.url):
            with notes.status("warming up"):
                _warm_up(producer, sample, plan.warm_up)
            before = read_counters(admin, keys)
            traffic = TrafficSender(producer, sample, plan.traffic)
            with console.Bar("requests") as bar, _no_collection_pauses():
                record = traffic.run(
                    lambda: _draw(bar, traffic),
                    lambda: _kill_worker(stack, notes) if plan.kill_worker else None,
                )
            stack.drain()  # a second answer to anything would be here now, and is counted
            after = read_counters(admin, keys)
            about, _ = server.read(admin, with_limits=False)
            grown = {name: after.get(name, 0) - before.get(name, 0) for name in ("shadowed", "lost")}
            return summarize(
                record,
                sample,
                shadowed=grown["shadowed"],
                lost_leases=grown["lost"],
                duplicates=producer.stray_replies,
                warm_up=plan.warm_up,
                worker_restarts=stack.pool.restarts if stack.pool else 0,
                environment=environment(
                    f"{about.name} {about.version}", stack.settings.counts, plan.traffic.rate
                ),
            )
    finally:
        if plan.own_queue:
            _remove(admin, keys)
        admin.close()


def _warm_up(producer: Producer, sample: Sample, count: int) -> None:
    """Sends a few requests on the measured path, outside of any sequence; never sampled as one."""
    for first in range(0, count, 16):
        numbers = range(first, min(first + 16, count))
        handles = producer.submit_many([sample.context(i) for i in numbers], options=Options(), block=True)
        for handle in handles:
            handle.result()


def _remove(admin: redis.Redis, keys: Keys) -> None:
    """Removes the run's own queue from a server that belongs to somebody."""
    with contextlib.suppress(redis.RedisError):  # every key of it also expires or is capped
        for key in admin.scan_iter(match=f"amn:{{{keys.queue}}}:*", count=1000):
            admin.unlink(key)


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
    """Answered of all, and the latency of the last thousand; nothing is computed where nobody looks."""
    if bar.visible:
        record = traffic.record
        p95 = percentiles(record.amn_ms[max(0, traffic.sent - 1000) : traffic.sent])["p95"]
        note = "" if p95 is None else f"p95 {p95:.2f} ms, {record.failed} failed"
        bar.draw("answering", record.ended, record.requests, note)
