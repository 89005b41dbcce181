"""arq."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgpack
import redis
from arq import create_pool
from arq.connections import RedisSettings
from arq.jobs import Job

from bench.peers.work import URL, chosen, in_chunks, predictor, work_of

REQUIREMENTS = ("arq", "msgpack")
CHOICES = ("1", "16", "64", "256")
NOTE = "{choice} job(s) at once, poll every 10 ms, msgpack, no per-job log; enqueue 64 at once"
COMMAND = (
    *("-m", "arq", "bench.peers.arq_loop.WorkerSettings"),
    *("--custom-log-dict", "bench.peers.arq_loop.QUIET"),
)
QUIET = {"version": 1}


async def work(_: dict[str, Any], context: bytes) -> bytes:
    return work_of(context)


async def load(_: dict[str, Any]) -> None:
    predictor()


class WorkerSettings:
    """The settings that arq's command reads."""

    functions = (work,)
    redis_settings = RedisSettings.from_dsn(URL)
    job_serializer = staticmethod(msgpack.packb)
    job_deserializer = staticmethod(msgpack.unpackb)
    on_startup = load
    max_jobs = int(chosen())
    poll_delay = 0.01
    queue_read_limit = 512


async def _pool() -> Any:
    return await create_pool(
        RedisSettings.from_dsn(URL), job_serializer=msgpack.packb, job_deserializer=msgpack.unpackb
    )


async def submit(contexts: Sequence[bytes]) -> list[str]:
    pool, ids = await _pool(), []
    for some in in_chunks(contexts):
        jobs = await asyncio.gather(*(pool.enqueue_job("work", context) for context in some))
        ids += [job.job_id for job in jobs]
    await pool.aclose()
    return ids


def waiting(client: redis.Redis) -> int:
    """Counts the queue's set, which a job leaves in the transaction that stores its result."""
    return int(client.zcard("arq:queue"))


async def result(job: str) -> bytes:
    pool = await _pool()
    value = await Job(job, pool, _deserializer=msgpack.unpackb).result(timeout=5)
    await pool.aclose()
    return bytes(value)
