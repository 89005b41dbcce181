"""Celery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
from celery import Celery
from celery.result import AsyncResult
from celery.signals import worker_init

from bench.peers.work import URL, chosen, predictor, work_of

POOL, _, COUNT = chosen().partition(" ")
REQUIREMENTS = ("celery[redis,msgpack]>=5.5",)
CHOICES = ("solo 1", "prefork 1", "threads 1", "threads 4", "threads 16")
NOTE = "pool {choice}, prefetch 64 a thread, msgpack, no gossip, mingle, heartbeat or events; one connection"
COMMAND = (
    *("-m", "celery", "-A", "bench.peers.celery_solo", "worker", "--pool", POOL, "--concurrency", COUNT),
    *("--loglevel", "ERROR"),
    *("--without-gossip", "--without-mingle", "--without-heartbeat", "--prefetch-multiplier", "64"),
)

app = Celery("bench", broker=URL, backend=URL)
app.conf.update(
    task_serializer="msgpack",
    result_serializer="msgpack",
    accept_content=["msgpack"],
    worker_send_task_events=False,
    broker_transport_options={"visibility_timeout": 3600},
)


@worker_init.connect
def load(**_: Any) -> None:
    predictor()


@app.task(name="answer")
def work(context: bytes) -> bytes:
    return work_of(context)


def submit(contexts: Sequence[bytes]) -> list[AsyncResult]:
    """One after the other on one connection, without subscribing to each result."""
    with app.producer_pool.acquire(block=True) as producer:
        return [work.apply_async((context,), producer=producer, ignore_result=False) for context in contexts]


def finished(client: redis.Redis) -> int:
    """Result keys; Celery's other keys are a handful and constant."""
    return int(client.dbsize())


def result(job: AsyncResult) -> bytes:
    return bytes(app.backend.get_result(job.id))
