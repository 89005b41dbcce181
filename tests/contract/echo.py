"""A worker for the producer's tests: it answers each request with the context's last vector."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

import numpy as np

from producer.errors import QueueError, ServerError
from producer.keys import Keys
from producer.messages import Failure, Reply, Request
from producer.protocol import wire
from producer.settings import ProducerSettings
from producer.transport.connection import driver_errors, script_text
from workers.engine.entry import Entry, Outcome
from workers.engine.queue import LeasedQueue
from workers.settings import QueueSettings, WorkerSettings

Answer = Callable[[Request], list[Reply | Failure]]


def echo(request: Request) -> list[Reply | Failure]:
    vector = np.asarray(request.context[-1], dtype=np.float32)
    return [Reply(id=request.id, vector=vector, confidence=0.9, margin=0.1)]


class EchoWorker:
    """Leases from the requests stream in a thread and ends each entry with `answer(request)`.

    Attributes:
        seen: Ids of the requests, each time that one was handled.
    """

    def __init__(self, url: str, answer: Answer = echo, **limits: int) -> None:
        producer = ProducerSettings(url=url)
        queue = QueueSettings(block_ms=20, batch_max=64, **limits)
        settings = WorkerSettings(kind="amn", producer=producer, queue=queue, sample_rate=0)
        self.queue = LeasedQueue(settings, Keys(producer.queue).requests, "echo")
        self._standing = self.queue.client.register_script(script_text("workers", "standing"))
        self.seen: list[str] = []
        self._answer = answer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self.queue.close()

    def _run(self) -> None:
        ready = False
        while not self._stop.is_set():
            try:
                if not ready:
                    self.queue.ensure_group()
                    ready = True
                with driver_errors(self.queue.settings.producer.url):  # as the keeper of a real worker
                    self._standing(
                        keys=[*self.queue.keys.places, self.queue.keys.standing], args=[10_000, 100]
                    )
                outcomes = [outcome for entry in self.queue.lease() for outcome in self._outcomes(entry)]
                self._finish(outcomes)
            except ServerError:
                ready = False
                time.sleep(0.02)

    def _finish(self, outcomes: list[Outcome]) -> None:
        """Tries again, as the real loop does: a finish is fenced, so that a repeat does no harm."""
        while not self._stop.is_set():
            try:
                self.queue.finish(outcomes)
                return
            except ServerError:
                time.sleep(0.02)

    def _outcomes(self, entry: Entry) -> list[Outcome]:
        request = wire.decode_request(entry.fields[b"request"])
        self.seen.append(request.id)
        *early, last = self._answer(request)
        for message in early:
            # A provisional answer, as the finish script's "both" would send it
            self.queue.client.xadd(self.queue.keys.replies(request.reply_to), {b"reply": _encoded(message)})
        return [Outcome(entry=entry, op="reply", reply_to=request.reply_to, payload=_encoded(last))]


def failure(request: Request, error: QueueError) -> list[Reply | Failure]:
    return [Failure(id=request.id, code=error.code, message=str(error), retryable=error.retryable)]


def _encoded(message: Reply | Failure) -> bytes:
    return wire.encode_failure(message) if isinstance(message, Failure) else wire.encode_reply(message)
