"""Requests under way while servers die: who was accepted, and what came back."""

from __future__ import annotations

import asyncio
import threading
import uuid
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from producer import AsyncProducer, Options, Producer, ProducerSettings
from producer.errors import QueueError, ResultTimeout
from producer.session.handle import Handle


class Traffic:
    """Submits eight named requests at a time until it is told to stop. A context manager.

    Attributes:
        producer: Its producer.
        accepted: Handles by request id.
        failures: What a submit raised; empty when waiting was enough.
    """

    def __init__(self, producer: Producer, contexts: NDArray[np.float32]) -> None:
        self.producer = producer
        self.accepted: dict[str, Handle] = {}
        self.failures: list[QueueError] = []
        self._contexts = contexts
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(40)
        assert not self._thread.is_alive()

    def context_of(self, request_id: str) -> NDArray[np.float32]:
        """What was sent under this id."""
        row: NDArray[np.float32] = self._contexts[int(request_id.rpartition("-")[2]) % len(self._contexts)]
        return row

    def _run(self) -> None:
        number, run = 0, uuid.uuid4().hex[:8]
        while not self._stop.is_set():
            ids = [f"{run}-{number + i}" for i in range(8)]
            number += 8
            options = [Options(request_id=name, deadline_ms=30_000) for name in ids]
            try:
                handles = self.producer.submit_many(
                    [self.context_of(name) for name in ids], block=True, options=options
                )
            except QueueError as error:
                self.failures.append(error)
                continue
            self.accepted.update(zip(ids, handles, strict=True))
            self._stop.wait(0.002)


class AsyncTraffic:
    """One asyncio producer, from before the fault until after it. A context manager.

    Attributes:
        answered: Answers that were right.
    """

    def __init__(self, settings: ProducerSettings, context: NDArray[np.float32]) -> None:
        self.answered = 0
        self._settings, self._context = settings, context
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(40)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            asyncio.run(self._ask())
        except BaseException as error:
            self._error = error

    async def _ask(self) -> None:
        async with AsyncProducer(settings=self._settings) as producer:
            while not self._stop.is_set():
                handle = await producer.submit(self._context, block=True)
                try:
                    reply = await handle.result(5_000)
                except ResultTimeout:
                    continue  # accepted in the old master's last milliseconds
                assert np.array_equal(reply.vector, self._context[-1])
                self.answered += 1
                await asyncio.sleep(0.005)


def patient(url: str, **fields: Any) -> ProducerSettings:
    """Settings of a producer that sits a failover out."""
    return ProducerSettings(url=url, connect_timeout_ms=500, command_timeout_ms=1_000, **fields)
