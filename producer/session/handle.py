"""The handles of requests in flight, which block a thread or are awaited."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from numbers import Real
from typing import Any, cast

from producer.errors import InvalidRequest, ProducerClosed, ResultTimeout
from producer.messages import BatchReply, Reply
from producer.session.pending import Pending

#: Added to a deadline when the caller waits for the named failure of a late request.
GRACE_MS = 1_000.0
#: A week; a lock does not wait for longer than some centuries.
_WAIT_MS_MAX = 7 * 24 * 3600 * 1000.0


class BaseHandle:
    """One request on its way.

    Attributes:
        id: The request id.
        sample_key: The text that the shadow sampling hashes (see `producer.sampling`).
    """

    __slots__ = ("_cancel", "_pending", "_wait_ms", "id", "sample_key")

    def __init__(self, pending: Pending, wait_ms: float, cancel: Callable[[str], Any]) -> None:
        self._pending = pending
        self._wait_ms = wait_ms
        self._cancel = cancel
        self.id = pending.id
        self.sample_key = pending.sample_key

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """In another process it is its id, so that an error which names some can be sent there."""
        return str, (self.id,)

    def done(self) -> bool:
        """Says whether the final answer, or failure, is here."""
        return self._pending.final.done()

    @property
    def started_at_s(self) -> float:
        """The `time.perf_counter` at which it was checked and encoded; latencies begin here."""
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
            deadline_ms = self._pending.deadline_ms
            left_ms = deadline_ms + GRACE_MS - waited_ms if deadline_ms else self._wait_ms
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

    def _wait(self, future: Any, timeout_ms: float | None) -> Any:
        limit_ms = self._limit_ms(timeout_ms)
        try:
            return future.result(limit_ms / 1000)
        except TimeoutError:
            raise self._timed_out(limit_ms) from None

    async def _wait_async(self, future: Any, timeout_ms: float | None) -> Any:
        limit_ms = self._limit_ms(timeout_ms)
        if not future.done():
            if future.get_loop() is not asyncio.get_running_loop():
                raise ProducerClosed(f"request {self.id} was sent in another event loop; wait for it there")
            # asyncio.wait, unlike wait_for, neither cancels the shared future nor wraps it
            await asyncio.wait((future,), timeout=limit_ms / 1000)
        if not future.done():
            raise self._timed_out(limit_ms)
        return future.result()


class Handle(BaseHandle):
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

    def cancel(self) -> bool:
        """Takes the request back, as `Producer.cancel`."""
        return bool(self._cancel(self.id))


class BatchHandle(Handle):
    """A batch of a `Producer`, whose answers are of type `BatchReply`."""

    __slots__ = ()
    result: Callable[..., BatchReply]  # type: ignore[assignment]
    first: Callable[..., BatchReply]  # type: ignore[assignment]


class AsyncHandle(BaseHandle):
    """A request of an `AsyncProducer`; the methods of `Handle`, to be awaited."""

    __slots__ = ()

    async def result(self, timeout_ms: float | None = None) -> Reply:
        """Waits as `Handle.result`. Cancelling the waiting task leaves the request in flight."""
        return cast(Reply, await self._wait_async(self._pending.final, timeout_ms))

    async def first(self, timeout_ms: float | None = None) -> Reply:
        """Waits as `Handle.first`."""
        return cast(Reply, await self._wait_async(self._pending.first, timeout_ms))

    async def cancel(self) -> bool:
        """Takes the request back, as `Producer.cancel`."""
        return bool(await self._cancel(self.id))


class AsyncBatchHandle(AsyncHandle):
    """A batch of an `AsyncProducer`, whose answers are of type `BatchReply`."""

    __slots__ = ()
    result: Callable[..., Awaitable[BatchReply]]  # type: ignore[assignment]
    first: Callable[..., Awaitable[BatchReply]]  # type: ignore[assignment]
