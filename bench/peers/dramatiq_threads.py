"""Dramatiq with threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dramatiq
import msgpack
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from bench.peers.work import URL, chosen, predictor, work_of

THREADS = chosen()
REQUIREMENTS = ("dramatiq[redis]", "msgpack")
CHOICES = ("1", "2", "4", "8", "16")
NOTE = "one process, {choice} thread(s), msgpack encoder, results stored"
COMMAND = ("-m", "dramatiq", "bench.peers.dramatiq_threads", "--processes", "1", "--threads", THREADS)


class Msgpack(dramatiq.Encoder):
    """Messages and results without pickle or base64."""

    def encode(self, data: Any) -> bytes:
        return bytes(msgpack.packb(data))

    def decode(self, data: bytes) -> Any:
        return msgpack.unpackb(data)


dramatiq.set_encoder(Msgpack())
broker = RedisBroker(url=URL)
broker.add_middleware(Results(backend=RedisBackend(url=URL, encoder=Msgpack())))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def work(context: bytes) -> bytes:
    return work_of(context)


class Load(dramatiq.Middleware):
    """Loads the model when the worker process starts."""

    def after_worker_boot(self, *_: Any) -> None:
        predictor()


broker.add_middleware(Load())


def submit(contexts: Sequence[bytes]) -> list[dramatiq.Message]:
    return [work.send(context) for context in contexts]


def finished(client: redis.Redis) -> int:
    return int(client.dbsize())


def result(job: dramatiq.Message) -> bytes:
    return bytes(job.get_result())
