"""taskiq on a Redis stream."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Sequence

import redis
from taskiq import TaskiqEvents, TaskiqState
from taskiq.serializers import MSGPackSerializer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from bench.peers.work import URL, chosen, in_chunks, predictor, work_of

TASKS = chosen()
REQUIREMENTS = ("taskiq[msgpack]", "taskiq-redis", "msgpack")
CHOICES = ("1", "16", "64", "256")
NOTE = "stream broker, one process, {choice} task(s) at once, prefetch as many, msgpack; enqueue 64 at once"
COMMAND = (
    *("-m", "taskiq", "worker", "bench.peers.taskiq_stream:broker", "--workers", "1", "--log-level", "ERROR"),
    *("--max-async-tasks", TASKS, "--max-prefetch", TASKS),
)

broker = (
    RedisStreamBroker(url=URL, xread_count=64)
    .with_result_backend(RedisAsyncResultBackend(redis_url=URL, serializer=MSGPackSerializer()))
    .with_serializer(MSGPackSerializer())
)


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def load(_: TaskiqState) -> None:
    predictor()


@broker.task(task_name="answer")
async def work(context: str) -> str:
    """The job. taskiq turns messages into JSON's types before any serializer, so bytes go as base64."""
    return b64encode(work_of(b64decode(context))).decode()


async def submit(contexts: Sequence[bytes]) -> list[str]:
    await broker.startup()
    ids: list[str] = []
    for some in in_chunks(contexts):
        tasks = await asyncio.gather(*(work.kiq(b64encode(context).decode()) for context in some))
        ids += [task.task_id for task in tasks]
    await broker.shutdown()
    return ids


def finished(client: redis.Redis) -> int:
    """Result keys; the stream and its group are one more."""
    return int(client.dbsize())


async def result(job: str) -> bytes:
    await broker.result_backend.startup()
    found = await broker.result_backend.get_result(job)
    await broker.result_backend.shutdown()
    return b64decode(found.return_value)
