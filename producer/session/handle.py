"""What a caller holds of a request in flight; one class for each of the two producers."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from numbers import Real
from typing import Any, cast

from producer.errors import InvalidRequest, ProducerClosed, ResultTimeout
from producer.messages import BatchReply, Reply
from producer.session.future import Waiting
from producer.session.pending import Pending

#: Added to a deadline when the caller waits for the named failure of a late request.
GRACE_MS = 1_000.0
#: A week; a lock does not wait for longer than some centuries.
_WAIT_MS_MAX = 7 * 24 * 3600 * 1000.0


class BaseHandle:
    """One request on its way.

    Attributes:
        id: The request id.
        sample_key: What the shadow sampling hashes (see `producer.sampling`).
    """

    __slots__ = ("_cancel", "_deadline_ms", "_pending", "_wait_ms", "id", "sample_key")

    def __init__(
        self, pending: Pending, wait_ms: float, cancel: Callable[[str], Any], deadline_ms: float = 0.0
    ) -> None:
        self._pending = pending
        self._wait_ms = wait_ms
        self._cancel = cancel
        self._deadline_ms = deadline_ms
        self.id = pending.id
        self.sample_key = pending.sample_key

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """In another process it is its id, so that an error which names some can be sent there."""
        return str, (self.id,)

    def done(self) -> bool:
        """Whether the final answer, or failure, is here."""
        return self._pending.final.done()

    @property
    def started_at_s(self) -> float:
        """When it was checked and encoded, and was to be sent: `time.perf_counter`; latencies begin here."""
        return self._pending.started_at_s

    @property
    def latency_ms(self) -> float | None:
        """From submit to the final answer's arrival, or None before."""
        return self._pending.latency_ms

    @property
    def first_latency_ms(self) -> float | None:
        """From submit to the first answer's arrival, or None before."""
        return self._pending.first_latency_ms

    def _limit_ms(self, timeout_ms: float | None) -> float:
        if timeout_ms is None:
            waited_ms = (time.perf_counter() - self._pending.started_at_s) * 1000
            left_ms = self._deadline_ms + GRACE_MS - waited_ms if self._deadline_ms else self._wait_ms
            return min(max(left_ms, 0.0), _WAIT_MS_MAX)
        number = isinstance(timeout_ms, Real) and not isinstance(timeout_ms, bool)
        limit_ms = float(min(max(timeout_ms, 0.0), _WAIT_MS_MAX)) if number else math.nan
        if math.isnan(limit_ms):
            raise InvalidRequest(f"timeout_ms is {timeout_ms!r:.80}; give a number of milliseconds")
        return limit_ms

    def _timed_out(self, limit_ms: float) -> ResultTimeout:
        return ResultTimeout(
            f"no answer to request {self.id} within {limit_ms:.6g} ms; is a worker running? (`amn doctor`)"
        )


class _Blocking(BaseHandle):
    __slots__ = ()

    def cancel(self) -> bool:
        """Takes the request back, as `Producer.cancel`."""
        return bool(self._cancel(self.id))

    def _wait(self, future: Any, timeout_ms: float | None) -> Any:
        limit_ms = self._limit_ms(timeout_ms)
        try:
            return cast(Waiting, future).result(limit_ms / 1000)
        except TimeoutError:
            raise self._timed_out(limit_ms) from None


class Handle(_Blocking):
    """A request of a `Producer`; its methods block the calling thread."""

    __slots__ = ()

    def result(self, timeout_ms: float | None = None) -> Reply:
        """Waits for the final answer.

        Args:
            timeout_ms: How long, a week at most; by default until a second after the deadline, or
                without a deadline `settings.result_timeout_ms`.

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
        waiter, limit_ms = cast("asyncio.Future[Any]", future), self._limit_ms(timeout_ms)
        if not waiter.done():
            if waiter.get_loop() is not asyncio.get_running_loop():
                raise ProducerClosed(f"request {self.id} was sent in another event loop; wait for it there")
            # asyncio.wait, unlike wait_for, neither cancels the shared future nor wraps it
            await asyncio.wait((waiter,), timeout=limit_ms / 1000)
        if not waiter.done():
            raise self._timed_out(limit_ms)
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
