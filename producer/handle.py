"""What a caller holds of a request in flight; one class for each of the two producers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from producer.errors import ResultTimeout
from producer.inflight import Pending
from producer.messages import BatchReply, Reply
from producer.waiting import Waiting


class BaseHandle:
    """One request on its way.

    Attributes:
        id: The request id.
        sample_key: What the shadow sampling hashes (see `producer.sampling`).
    """

    __slots__ = ("_cancel", "_pending", "_wait_ms", "id", "sample_key")

    def __init__(self, pending: Pending, wait_ms: float, cancel: Callable[[str], Any]) -> None:
        self._pending = pending
        self._wait_ms = wait_ms
        self._cancel = cancel
        self.id = pending.id
        self.sample_key = pending.sample_key

    def done(self) -> bool:
        """Whether the final answer, or failure, is here."""
        return self._pending.final.done()

    @property
    def latency_ms(self) -> float | None:
        """From submit to the final answer's arrival, or None before."""
        return self._pending.latency_ms

    @property
    def first_latency_ms(self) -> float | None:
        """From submit to the first answer's arrival, or None before."""
        return self._pending.first_latency_ms

    def _limit_ms(self, timeout_ms: float | None) -> float:
        return self._wait_ms if timeout_ms is None else timeout_ms

    def _timed_out(self, timeout_ms: float | None) -> ResultTimeout:
        return ResultTimeout(
            f"no answer to request {self.id} within {self._limit_ms(timeout_ms):g} ms; "
            "is a worker running? (`amn doctor`)"
        )


class _Blocking(BaseHandle):
    __slots__ = ()

    def cancel(self) -> bool:
        """Takes the request back, as `Producer.cancel`."""
        return bool(self._cancel(self.id))

    def _wait(self, future: Any, timeout_ms: float | None) -> Any:
        try:
            return cast(Waiting, future).result(self._limit_ms(timeout_ms) / 1000)
        except TimeoutError:
            raise self._timed_out(timeout_ms) from None


class Handle(_Blocking):
    """A request of a `Producer`; its methods block the calling thread."""

    __slots__ = ()

    def result(self, timeout_ms: float | None = None) -> Reply:
        """Waits for the final answer.

        Args:
            timeout_ms: How long; by default the deadline and a second, or without a deadline
                `settings.result_timeout_ms`.

        Raises:
            ResultTimeout: Nothing came in time.
            QueueError: The failure that the worker named, or DuplicateRequest.
        """
        return cast(Reply, self._wait(self._pending.final, timeout_ms))

    def first(self, timeout_ms: float | None = None) -> Reply:
        """Waits for the first answer: the provisional one if it was asked for, else the final."""
        return cast(Reply, self._wait(self._pending.first, timeout_ms))


class BatchHandle(_Blocking):
    """As `Handle`, of a batch."""

    __slots__ = ()

    def result(self, timeout_ms: float | None = None) -> BatchReply:
        """As `Handle.result`."""
        return cast(BatchReply, self._wait(self._pending.final, timeout_ms))

    def first(self, timeout_ms: float | None = None) -> BatchReply:
        """As `Handle.first`."""
        return cast(BatchReply, self._wait(self._pending.first, timeout_ms))


class _Awaited(BaseHandle):
    __slots__ = ()

    async def cancel(self) -> bool:
        """As `Handle.cancel`."""
        return await cast("Awaitable[bool]", self._cancel(self.id))

    async def _wait(self, future: Any, timeout_ms: float | None) -> Any:
        waiter = cast("asyncio.Future[Any]", future)
        if not waiter.done():
            # asyncio.wait, unlike wait_for, neither cancels the shared future nor wraps it
            await asyncio.wait((waiter,), timeout=self._limit_ms(timeout_ms) / 1000)
        if not waiter.done():
            raise self._timed_out(timeout_ms)
        return waiter.result()


class AsyncHandle(_Awaited):
    """A request of an `AsyncProducer`; the same methods, to be awaited."""

    __slots__ = ()

    async def result(self, timeout_ms: float | None = None) -> Reply:
        """As `Handle.result`. Cancelling the waiting task leaves the request in flight."""
        return cast(Reply, await self._wait(self._pending.final, timeout_ms))

    async def first(self, timeout_ms: float | None = None) -> Reply:
        """As `Handle.first`."""
        return cast(Reply, await self._wait(self._pending.first, timeout_ms))


class AsyncBatchHandle(_Awaited):
    """As `AsyncHandle`, of a batch."""

    __slots__ = ()

    async def result(self, timeout_ms: float | None = None) -> BatchReply:
        """As `Handle.result`."""
        return cast(BatchReply, await self._wait(self._pending.final, timeout_ms))

    async def first(self, timeout_ms: float | None = None) -> BatchReply:
        """As `Handle.first`."""
        return cast(BatchReply, await self._wait(self._pending.first, timeout_ms))
