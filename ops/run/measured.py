"""Warm-up, traffic, counters and clean-up of one measured run."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import redis
from rich.console import Console
from rich.progress import Progress, TaskID

from ops import console
from ops.health import server
from ops.health.counters import read_counters
from ops.local.stack import Stack
from ops.run.summary import RunSummary, environment, percentiles, shown, summarize
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
        kill_worker: Whether an AMN worker is killed half-way.
        own_queue: Whether the queue's keys are removed at the end.
    """

    traffic: TrafficSettings
    warm_up: int = 200
    kill_worker: bool = False
    own_queue: bool = False


def measure(stack: Stack, sample: Sample, plan: RunPlan, notes: Console) -> RunSummary:
    """Runs the plan on a stack that is up.

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
            before = _counters(admin, keys)
            traffic = TrafficSender(producer, sample, plan.traffic)
            with _shown(traffic, plan.traffic) as on_progress, _no_collection_pauses():
                timing = traffic.run(on_progress, _killer(stack, notes) if plan.kill_worker else lambda: None)
            stack.drain()  # a second answer to anything would be here now, and is counted
            after = _counters(admin, keys)
            return summarize(
                traffic.tally,
                sample,
                timing,
                shadowed=after["shadowed"] - before["shadowed"],
                lost_leases=after["lost"] - before["lost"],
                duplicates=producer.stray_replies,
                warm_up=plan.warm_up,
                worker_restarts=stack.pool.restarts if stack.pool else 0,
                environment=environment(_server(admin), stack.settings.counts, plan.traffic.rate),
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


def _counters(admin: redis.Redis, keys: Keys) -> dict[str, int]:
    found = read_counters(admin, keys)
    return {name: found.get(name, 0) for name in ("shadowed", "lost")}


def _server(admin: redis.Redis) -> str:
    about, _ = server.read(admin, with_limits=False)
    return f"{about.name} {about.version}"


def _remove(admin: redis.Redis, keys: Keys) -> None:
    """Removes the run's own queue from a server that belongs to somebody."""
    with contextlib.suppress(redis.RedisError):  # every key of it also expires or is capped
        for key in admin.scan_iter(match=f"amn:{{{keys.queue}}}:*", count=1000):
            admin.unlink(key)


def _killer(stack: Stack, notes: Console) -> Callable[[], None]:
    def kill() -> None:
        pids = stack.pool.pids()["amn"] if stack.pool else []
        if pids:
            os.kill(pids[0], signal.SIGKILL)
            notes.print(f"killed AMN worker {pids[0]} (SIGKILL) half-way")

    return kill


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


@contextmanager
def _shown(traffic: TrafficSender, settings: TrafficSettings) -> Iterator[Callable[[TrafficSender], None]]:
    """A live line: answered of all, rate, latency so far."""
    with console.progress("requests") as bar:
        task = bar.add_task("answering", total=settings.requests, note="")
        yield lambda now: _draw(bar, task, now)
        _draw(bar, task, traffic)


def _draw(bar: Progress, task: TaskID, traffic: TrafficSender) -> None:
    tally = traffic.tally
    done = tally.answered + tally.failed
    if bar.console.is_terminal:
        recent = tally.amn_ms[max(0, traffic.sent - 1000) : traffic.sent]
        note = f"p95 {shown(percentiles(recent)['p95'], 2)} ms, {tally.failed} failed"
        bar.update(task, completed=done, note=note)
        bar.refresh()
