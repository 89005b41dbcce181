"""Several workers' queues on one server, for the tests of what they rely on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from producer.keys import GROUP, Keys
from producer.messages import PRIORITIES, Failure, Reply, Request
from producer.protocol import wire
from producer.settings import ProducerSettings
from workers.engine.entry import Entry, Outcome
from workers.engine.queue import LeasedQueue
from workers.settings import QueueSettings, WorkerSettings

KEYS = Keys()
REPLIES = KEYS.replies("client")


def show_worker(admin: Any, name: str, presence: Mapping[Any, Any]) -> None:
    """Makes a worker's presence, and its name among those that read."""
    with suppress(redis.ResponseError):  # the group is there
        admin.xgroup_create(KEYS.requests, GROUP, id="0", mkstream=True)
    admin.xgroup_createconsumer(KEYS.requests, GROUP, name)
    admin.hset(KEYS.worker(name), mapping=presence)


class Rig:
    """Queues of several workers on one server."""

    def __init__(self, target: Any, contexts: NDArray[np.float32]) -> None:
        self.kind = target.kind
        self.admin = target.admin
        self.url = target.url
        self.contexts = contexts
        self._open: list[LeasedQueue] = []

    def queue(self, name: str, stream: str = KEYS.requests, **limits: int) -> LeasedQueue:
        settings = WorkerSettings(
            kind="amn",
            producer=ProducerSettings(url=self.url),
            queue=QueueSettings(**{"block_ms": 20, "lease_ms": 60_000, **limits}),
        )
        queue = LeasedQueue(settings, stream, name)
        queue.ensure_group()
        self._open.append(queue)
        return queue

    def put(self, *names: str, **fields: Any) -> None:
        """Appends requests to their level, with the byte count, as submit.lua does."""
        for i, name in enumerate(names):
            context = self.contexts[i % len(self.contexts)]
            request = Request(id=name, reply_to="client", context=context, **fields)
            self.put_bytes(wire.encode_request(request), PRIORITIES.index(request.priority))

    def put_bytes(self, payload: bytes, level: int = 1) -> None:
        with self.admin.pipeline() as pipe:
            pipe.xadd(KEYS.levels[level], {"request": payload})
            pipe.incrby(KEYS.counters[level], len(payload))
            pipe.execute()

    def begun(self, queue: LeasedQueue) -> list[Entry]:
        """Leases, and begins what had been delivered before, as the loop does."""
        entries = queue.lease()
        return queue.begin(entries) if entries and entries[0].deliveries > 1 else entries

    def deliveries(self, stream: str = KEYS.requests) -> list[int]:
        """What the server counts of each leased entry."""
        rows = self.admin.xpending_range(stream, GROUP, "-", "+", 1000)
        return [row["times_delivered"] for row in rows]

    def replies(self) -> list[Reply | Failure]:
        return [wire.decode_reply(fields[b"reply"]) for _, fields in self.admin.xrange(REPLIES)]

    def stats(self) -> dict[str, int]:
        return {name.decode(): int(n) for name, n in self.admin.hgetall(KEYS.stats).items()}

    def expire_leases(self, *streams: str) -> None:
        """Makes every lease look an hour old, so that no test has to wait."""
        for stream in streams or KEYS.levels:
            for row in self.admin.xpending_range(stream, GROUP, "-", "+", 1000):
                self.admin.xclaim(
                    stream, GROUP, row["consumer"], 0, [row["message_id"]], idle=3_600_000, justid=True
                )

    def bytes_left(self) -> list[int]:
        """The byte counters by place."""
        return [int(self.admin.get(name) or 0) for name in KEYS.counters]

    def close(self) -> None:
        for queue in self._open:
            queue.close()


def answer(entry: Entry, op: str = "reply", **fields: Any) -> Outcome:
    request = wire.decode_request(entry.fields[b"request"])
    reply = Reply(
        id=request.id, vector=np.asarray(request.context[0], np.float32), confidence=0.9, margin=0.1
    )
    fields.setdefault("counters", "escalated" if op in ("escalate", "both") else "answered,answered:amn")
    return Outcome(entry=entry, op=op, reply_to=request.reply_to, payload=wire.encode_reply(reply), **fields)
