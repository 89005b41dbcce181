"""This project."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import redis

from bench.peers.work import URL, in_chunks
from producer import Options, Producer, ProducerSettings
from producer.keys import Keys
from producer.messages import Reply
from producer.protocol.wire import decode_reply
from producer.transport.connection import connect

REQUIREMENTS: tuple[str, ...] = ()
NOTE = "one AMN worker as shipped, default policy on; submit_many 64 at once"
COMMAND = ("-m", "workers", "amn", "--log-level", "warning")

_KEYS = Keys()


def submit(contexts: Sequence[bytes]) -> list[tuple[str, str]]:
    """64 at a time. Provisional answers are asked for: no fallback runs here, and each job has one."""
    settings = ProducerSettings(url=URL, in_flight_max=len(contexts) + 1)
    options = Options(provisional=True)
    handles = []
    with Producer(settings=settings) as producer:
        for some in in_chunks(contexts):
            arrays = [np.frombuffer(context, "<f4").reshape(5, 768) for context in some]
            handles += producer.submit_many(arrays, options=options)
        return [(producer.client_id, handle.id) for handle in handles]


def finished(client: redis.Redis) -> int:
    """Answered, here or with an escalation on its way."""
    return sum(int(n or 0) for n in client.hmget(_KEYS.stats, ["answered", "escalated"]))


def result(job: tuple[str, str]) -> bytes:
    """Vector and scores of one job, from its client's reply stream."""
    client_id, request_id = job
    reply = _replies(client_id)[request_id]
    scores = np.array([reply.confidence, reply.confidence - reply.margin], dtype="<f4")
    return np.asarray(reply.vector, dtype="<f4").tobytes() + scores.tobytes()


@lru_cache(maxsize=1)
def _replies(client_id: str) -> dict[str, Reply]:
    with connect(ProducerSettings(url=URL)) as client:
        rows = client.xrange(_KEYS.replies(client_id))
    replies = (decode_reply(fields[b"reply"]) for _, fields in rows if b"reply" in fields)
    return {reply.id: reply for reply in replies if isinstance(reply, Reply)}
