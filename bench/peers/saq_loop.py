"""saq."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgpack
import redis
from saq import Queue

from bench.peers.work import URL, chosen, in_chunks, predictor, work_of

REQUIREMENTS = ("saq[redis,hiredis]", "msgpack")
CHOICES = ("1", "4", "16", "64")
NOTE = "{choice} job(s) at once, msgpack; enqueue 64 at once"
COMMAND = ("-m", "saq", "bench.peers.saq_loop.settings", "--quiet")


def _queue() -> Any:
    return Queue.from_url(URL, name="bench", dump=msgpack.packb, load=msgpack.unpackb)


async def work(_: dict[str, Any], *, context: bytes) -> bytes:
    return work_of(context)


async def load(_: dict[str, Any]) -> None:
    predictor()


queue = _queue()
settings = {"queue": queue, "functions": [work], "concurrency": int(chosen()), "startup": load}


async def submit(contexts: Sequence[bytes]) -> list[str]:
    one = _queue()
    await one.connect()
    keys: list[str] = []
    for some in in_chunks(contexts):
        jobs = await asyncio.gather(*(one.enqueue("work", context=context, ttl=3600) for context in some))
        keys += [job.key for job in jobs]
    await one.disconnect()
    return keys


def waiting(client: redis.Redis) -> int:
    """Counts the set of incomplete jobs."""
    return int(client.zcard("saq:bench:incomplete"))


async def result(job: str) -> bytes:
    one = _queue()
    await one.connect()
    found = await one.job(job)
    await one.disconnect()
    return bytes(found.result)
