"""The service in a thread: the real loop on the real queue, with a handler that echoes."""

from __future__ import annotations

import threading
from typing import Self

import numpy as np

from producer.keys import Keys
from producer.messages import BatchReply, Reply, Request
from producer.protocol import wire
from producer.settings import ProducerSettings
from workers.engine.entry import Outcome
from workers.engine.loop import Loop
from workers.engine.microbatch import MicroBatch
from workers.engine.queue import LeasedQueue
from workers.settings import QueueSettings, WorkerSettings


class Echo:
    """Answers each context with its last vector.

    Attributes:
        seen: Request ids, each time that one was handled.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []

    def handle(self, batch: MicroBatch) -> list[Outcome]:
        self.seen += [request.id for request in batch.requests]
        return [
            Outcome(
                entry=entry,
                op="reply",
                reply_to=request.reply_to,
                payload=wire.encode_reply(echoed(request, batch.contexts[batch.rows(i)])),
                counters="answered",
            )
            for i, (entry, request) in enumerate(zip(batch.entries, batch.requests, strict=True))
        ]


def echoed(request: Request, contexts: np.ndarray) -> Reply | BatchReply:
    """The answer to one context, or to a message of many, with the last vector of each."""
    named = {"id": request.id, "traceparent": request.traceparent}
    if not request.batched:
        return Reply(**named, vector=np.array(contexts[0, -1]), confidence=0.9, margin=0.1)
    numbers, codes = np.zeros(len(contexts), np.float32), np.zeros(len(contexts), np.uint8)
    return BatchReply(
        **named,
        vectors=np.array(contexts[:, -1]),
        **dict.fromkeys(("confidences", "margins", "gains"), numbers),
        **dict.fromkeys(("fired", "shed"), codes),
        rules=(),
        sheds=(),
    )


class Service:
    """One AMN worker of a queue, but for its model. A context manager."""

    def __init__(self, settings: ProducerSettings, name: str = "echo", lease_ms: int = 1_000) -> None:
        queue = QueueSettings(block_ms=50, batch_max=64, lease_ms=lease_ms)
        worker = WorkerSettings(kind="amn", producer=settings, queue=queue, sample_rate=0)
        self.echo = Echo()
        leased = LeasedQueue(worker, Keys(settings.queue).requests, f"{name}-{settings.queue}")
        self.loop = Loop(leased, self.echo)
        self._thread = threading.Thread(target=self.loop.run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.stop()
        self._thread.join(20)
        self.loop.queue.close()
        assert not self._thread.is_alive()
