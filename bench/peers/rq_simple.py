"""rq with SimpleWorker: jobs run in the worker's own process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgpack
import redis
from rq import Queue, SimpleWorker
from rq.job import Job

from bench.peers.work import URL, predictor, work_of

REQUIREMENTS = ("rq", "msgpack", "redis")
NOTE = "SimpleWorker, enqueue_many in one pipeline, msgpack serializer, logging at WARNING"
COMMAND = ("-m", "bench.peers.rq_simple")
CLASS = SimpleWorker


class Msgpack:
    """A serializer without pickle."""

    dumps = staticmethod(msgpack.packb)
    loads = staticmethod(msgpack.unpackb)


def queue() -> Queue:
    """The queue, on a connection of its own."""
    return Queue("bench", connection=redis.Redis.from_url(URL), serializer=Msgpack)


def submit(contexts: Sequence[bytes]) -> list[Job]:
    return queue().enqueue_many([Queue.prepare_data(work_of, [context]) for context in contexts])


def finished(client: redis.Redis) -> int:
    return int(client.zcard("rq:finished:bench"))


def result(job: Job) -> bytes:
    return bytes(job.latest_result().return_value)


def main(worker: type) -> None:
    """Serves until it is killed."""
    predictor()
    worker([queue()], serializer=Msgpack, connection=redis.Redis.from_url(URL)).work(logging_level="WARNING")


if __name__ == "__main__":
    main(CLASS)
    sys.exit(0)
