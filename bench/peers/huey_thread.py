"""huey with threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import redis
from huey import RedisHuey
from huey.registry import Message
from huey.serializer import Serializer

from bench.peers.work import URL, chosen, predictor, work_of

TUNED = ("-w", chosen(), "-q")
REQUIREMENTS = ("huey", "redis", "msgpack")
CHOICES = ("1", "2", "4", "8", "16")
NOTE = "{choice} thread(s), blocking reads, msgpack"
COMMAND = ("-m", "huey.bin.huey_consumer", "bench.peers.huey_thread.huey", "-k", "thread", *TUNED)


class Msgpack(Serializer):
    """Messages (tuples) and results without pickle."""

    def _serialize(self, data: Any) -> bytes:
        return bytes(msgpack.packb(data, default=list))

    def _deserialize(self, data: bytes) -> Any:
        value = msgpack.unpackb(data)
        return Message(*value) if isinstance(value, list) else value


huey = RedisHuey("bench", url=URL, blocking=True, serializer=Msgpack())


@huey.on_startup()
def load() -> None:
    predictor()


@huey.task()
def work(context: bytes) -> bytes:
    return work_of(context)


def submit(contexts: Sequence[bytes]) -> list[Any]:
    return [work(context) for context in contexts]


def finished(client: redis.Redis) -> int:
    return int(client.hlen("huey.results.bench"))


def result(job: Any) -> bytes:
    return bytes(job.get(preserve=True))
