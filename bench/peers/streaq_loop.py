"""streaq."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import redis
from streaq import Worker

from bench.peers.work import URL, chosen, in_chunks, predictor, work_of

REQUIREMENTS = ("streaq", "msgpack")
CHOICES = ("1", "4", "16", "64")
NOTE = "{choice} task(s) at once, prefetch as shipped, msgpack, logging at WARNING; enqueue_many 64 at once"
COMMAND = ("-m", "streaq", "run", "bench.peers.streaq_loop:worker")


@asynccontextmanager
async def load() -> AsyncGenerator[None]:
    logging.getLogger("streaq").setLevel(logging.WARNING)
    predictor()
    yield


worker: Any = Worker(
    redis_url=URL,
    concurrency=int(chosen()),
    lifespan=load,
    serializer=msgpack.packb,
    deserializer=msgpack.unpackb,
    queue_name="bench",
)


@worker.task(ttl=3600)
async def work(context: bytes) -> bytes:
    return work_of(context)


async def submit(contexts: Sequence[bytes]) -> list[str]:
    ids: list[str] = []
    async with worker:
        for some in in_chunks(contexts):
            tasks = [work.enqueue(context) for context in some]
            await worker.enqueue_many(tasks)
            ids += [task.id for task in tasks]
    return ids


def finished(client: redis.Redis) -> int:
    """The index of stored results."""
    return int(client.zcard("streaq:bench:index:results"))


async def result(job: str) -> bytes:
    async with worker:
        return bytes((await worker.result_by_id(job)).result)
