"""Joins what many tasks send at the same time into few round trips."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from producer.errors import ProducerClosed
from producer.session.requests import Outgoing
from producer.session.submission import SEND_BYTES_MAX, SEND_COUNT_MAX

Send = Callable[[Sequence[Outgoing]], Awaitable[list[int]]]


class Funnel:
    """One send at a time; what arrives meanwhile goes out together in the next.

    Nobody waits for others to come: an idle funnel sends at once.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: list[tuple[Sequence[Outgoing], asyncio.Future[list[int]]]] = []
        self._task: asyncio.Task[None] | None = None

    async def send(self, batch: Sequence[Outgoing]) -> list[int]:
        """Sends these requests, maybe among others; returns their statuses.

        Raises:
            ServerError: From the round trip that this batch was part of.
        """
        future: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain(), name="amn-submit")
        return await future

    async def close(self) -> None:
        """Ends the sending task; whoever waits for it gets ProducerClosed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        _refuse(self._waiting, asyncio.CancelledError())

    async def _drain(self) -> None:
        while some := self._next():
            try:
                statuses = await self._send([item for batch, _ in some for item in batch])
            except BaseException as error:
                _refuse(some, error)
                if not isinstance(error, Exception):
                    raise
                continue
            start = 0
            for batch, future in some:
                stop = start + len(batch)
                if not future.done():  # its task may have been cancelled meanwhile
                    future.set_result(statuses[start:stop])
                start = stop

    def _next(self) -> list[tuple[Sequence[Outgoing], asyncio.Future[list[int]]]]:
        # Whose task was cancelled before it was sent, is not sent.
        self._waiting = [item for item in self._waiting if not item[1].done()]
        count = size = size_bytes = 0
        for batch, _ in self._waiting:
            size += len(batch)
            size_bytes += sum(len(item.payload) for item in batch)
            if count and (size > SEND_COUNT_MAX or size_bytes > SEND_BYTES_MAX):
                break
            count += 1
        some, self._waiting = self._waiting[:count], self._waiting[count:]
        return some


def _refuse(some: list[tuple[Sequence[Outgoing], asyncio.Future[list[int]]]], error: BaseException) -> None:
    if not isinstance(error, Exception):  # the sending task was cancelled, not those who wait for it
        error = ProducerClosed("the producer was closed while the request was sent")
    for _, future in some:
        if not future.done():
            future.set_exception(error)
