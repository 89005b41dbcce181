"""Requests in flight: their handles, which block a thread or are awaited."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable
from numbers import Real
from typing import Any, cast

from producer.errors import InvalidRequest, ProducerClosed, QueueError, ResultTimeout
from producer.messages import Answer, BatchReply, Reply
from producer.session.requests import Outgoing

#: Added to a deadline when the caller waits for the named failure of a late request.
GRACE_MS = 1_000.0
#: A week; a lock does not wait for longer than some centuries.
_WAIT_MS_MAX = 7 * 24 * 3600 * 1000.0
#: Reads answers until this handle has its final one, for so many seconds at most; gives those that are left.
Lead = Callable[["BaseHandle", float], float]


class BaseHandle:
    """One request on its way; its first answer is the final one unless a provisional one was asked for.

    Args:
        owner: Its producer.
        on_end: Called with the handle and the final outcome.

    Attributes:
        id: The request id.
        sample_key: The text that the shadow sampling hashes (see `producer.sampling`).
        started_at_s: The `time.perf_counter` at which it was registered; latencies begin here.
        latency_ms, first_latency_ms: To the arrival of the final and the first answer; None before.
        lost_at_s: When the producer gives it up; infinite without a deadline.
        submitted_at_ms: By the server's clock, as the request says.
        got_in_at_s: When the server said that it has it; infinite before.
        lead: Reads for it once, if its caller awaits it at once; None where the reply task reads.
    """

    __slots__ = (
        *("_deadline_ms", "_final", "_final_gate", "_first", "_first_gate", "_on_end", "_owner"),
        *("contexts", "first_latency_ms", "got_in_at_s", "id", "latency_ms", "lead", "level"),
        *("lost_at_s", "named", "rows", "sample_key", "started_at_s", "submitted_at_ms"),
    )

    def __init__(
        self,
        owner: Any,
        outgoing: Outgoing,
        on_end: Callable[[BaseHandle, Answer | QueueError], object] | None = None,
    ) -> None:
        self._owner, self._on_end = owner, on_end
        self.id, self.sample_key, self.level = outgoing.id, outgoing.sample_key, outgoing.level
        self.contexts, self.named = outgoing.contexts, outgoing.named
        self.submitted_at_ms = outgoing.submitted_at_ms
        self.rows = outgoing.contexts if outgoing.batched else 0
        self._deadline_ms = outgoing.deadline_ms
        self.lost_at_s = self.got_in_at_s = math.inf
        self._first: Answer | QueueError | None = None
        self._final: Answer | QueueError | None = None
        self._final_gate = self._make_gate()
        self._first_gate = self._make_gate() if outgoing.provisional else self._final_gate
        self.first_latency_ms = self.latency_ms = self.lead = None
        self.started_at_s = time.perf_counter()

    def __repr__(self) -> str:
        outcome, batch = self._final, f" of {self.rows} contexts" if self.rows else ""
        if isinstance(outcome, QueueError):
            state = f"failed: {outcome.code}"
        elif outcome is not None:
            state = f"answered by {outcome.served_by} after {self.latency_ms:.3g} ms"
        else:
            state = "waiting" if self._first is None else "provisional answer, waiting for the final one"
        return f"<{type(self).__name__} {self.id}{batch}: {state}>"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """In another process it is its id, so that an error which names some can be sent there."""
        return str, (self.id,)

    first_latency_ms: float | None
    latency_ms: float | None
    lead: Callable[[float], Awaitable[float]] | None
    #: Make a gate that is closed, and open it for those who wait.
    _make_gate: Callable[[], Any]
    _open: Callable[[Any], None]

    def tell(self, on_end: Callable[[BaseHandle, Answer | QueueError], object]) -> None:
        """Has this called at the end too, after what the maker of this handle gave."""
        others = self._on_end

        def both(handle: BaseHandle, outcome: Answer | QueueError) -> None:
            if others is not None:
                others(handle, outcome)
            on_end(handle, outcome)

        self._on_end = both

    def done(self) -> bool:
        """True once the final answer, or failure, is here."""
        return self._final is not None

    def settle(self, outcome: Answer | QueueError) -> None:
        """Takes a provisional answer or, once, the final outcome; again, it does what an interrupt left."""
        waited_ms = (time.perf_counter() - self.started_at_s) * 1000
        first, final = self._first is None, isinstance(outcome, QueueError) or not outcome.provisional
        if first:
            self.first_latency_ms, self._first = waited_ms, outcome
        if final:
            self.latency_ms, self._final = waited_ms, outcome
        if first:
            self._open(self._first_gate)
        if final:
            gate, self._final_gate = self._final_gate, self._first_gate  # which is open
            if gate is not self._first_gate:
                self._open(gate)
            if self._on_end is not None:
                self._on_end(self, outcome)

    def _limit_ms(self, timeout_ms: float | None) -> float:
        if timeout_ms is not None:
            return _checked_ms(timeout_ms)
        if not self._deadline_ms:
            return float(self._owner.settings.result_timeout_ms)
        left_ms = self._deadline_ms + GRACE_MS - (time.perf_counter() - self.started_at_s) * 1000
        return min(max(left_ms, 0.0), _WAIT_MS_MAX)

    def _timed_out(self, limit_ms: float) -> ResultTimeout:
        return ResultTimeout(
            f"no answer to request {self.id} within {limit_ms:.6g} ms; is a worker running? (`amn doctor`)"
        )


def _checked_ms(timeout_ms: float) -> float:
    number = isinstance(timeout_ms, Real) and not isinstance(timeout_ms, bool)
    limit_ms = float(min(max(timeout_ms, 0.0), _WAIT_MS_MAX)) if number else math.nan
    if math.isnan(limit_ms):
        raise InvalidRequest(f"timeout_ms is {timeout_ms!r:.80}; give a number of milliseconds")
    return limit_ms


class Handle(BaseHandle):
    """A request of a `Producer`; its methods block the calling thread."""

    __slots__ = ()

    @staticmethod
    def _make_gate() -> threading.Lock:
        # One lock, held until there is an answer, costs a third of a condition for each request.
        gate = threading.Lock()
        gate.acquire()
        return gate

    _open = staticmethod(type(threading.Lock()).release)

    def wait(self, first: bool, timeout_ms: float | None, lead: Lead | None = None) -> Any:
        """Waits for the first or the final answer, as `first` and `result` do; `lead` reads it meanwhile."""
        gate, limit_ms = self._first_gate if first else self._final_gate, self._limit_ms(timeout_ms)
        left_s = limit_ms / 1000 if lead is None else lead(self, limit_ms / 1000)
        # The outcome is there before its gate opens, and counts: an interrupt may leave a gate shut for good.
        if (self._first if first else self._final) is None and gate.acquire(timeout=left_s):
            gate.release()  # the next waiter passes too
        outcome = self._first if first else self._final
        if outcome is None or isinstance(outcome, QueueError):
            raise outcome or self._timed_out(limit_ms)
        return outcome

    def result(self, timeout_ms: float | None = None) -> Reply:
        """Waits for the final answer.

        Args:
            timeout_ms: How long, a week at most; by default until a second after the deadline, or
                without a deadline `settings.result_timeout_ms`.

        Raises:
            ResultTimeout: Nothing came in time.
            QueueError: The failure that the worker named, or DuplicateRequest.
        """
        return cast(Reply, self.wait(False, timeout_ms))

    def first(self, timeout_ms: float | None = None) -> Reply:
        """Waits for the first answer: the provisional one if it was asked for, else the final."""
        return cast(Reply, self.wait(True, timeout_ms))

    def cancel(self) -> bool:
        """Takes the request back, as `Producer.cancel`."""
        return bool(self._owner.cancel(self.id))


class BatchHandle(Handle):
    """A batch of a `Producer`, whose answers are of type `BatchReply`."""

    __slots__ = ()
    result: Callable[..., BatchReply]  # type: ignore[assignment]
    first: Callable[..., BatchReply]  # type: ignore[assignment]


class AsyncHandle(BaseHandle):
    """A request of an `AsyncProducer`; the methods of `Handle`, to be awaited."""

    __slots__ = ()

    @staticmethod
    def _make_gate() -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def _open(self, gate: asyncio.Future[None]) -> None:
        gate.set_result(None)

    async def _wait(self, first: bool, timeout_ms: float | None) -> Any:
        gate, limit_ms = self._first_gate if first else self._final_gate, self._limit_ms(timeout_ms)
        if not gate.done():
            if gate.get_loop() is not asyncio.get_running_loop():
                raise ProducerClosed(f"request {self.id} was sent in another event loop; wait for it there")
            lead, self.lead, left_s = self.lead, None, limit_ms / 1000
            if lead is not None:
                left_s = await lead(left_s)
            if not gate.done():
                await _opened(gate, left_s)
            if not gate.done():
                raise self._timed_out(limit_ms)
        outcome = self._first if first else self._final
        if isinstance(outcome, QueueError):
            raise outcome
        return outcome

    async def result(self, timeout_ms: float | None = None) -> Reply:
        """Waits as `Handle.result`. Cancelling the waiting task leaves the request in flight."""
        return cast(Reply, await self._wait(False, timeout_ms))

    async def first(self, timeout_ms: float | None = None) -> Reply:
        """Waits as `Handle.first`."""
        return cast(Reply, await self._wait(True, timeout_ms))

    async def cancel(self) -> bool:
        """Takes the request back, as `Producer.cancel`."""
        return bool(await self._owner.cancel(self.id))


async def _opened(gate: asyncio.Future[None], limit_s: float) -> None:
    """Waits until a gate that others wait for too opens, or for so long: asyncio.wait takes 2 us more."""
    waiter = gate.get_loop().create_future()

    def wake(_: Any = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = gate.get_loop().call_later(limit_s, wake)
    gate.add_done_callback(wake)
    try:
        await waiter
    finally:
        timer.cancel()
        gate.remove_done_callback(wake)


class AsyncBatchHandle(AsyncHandle):
    """A batch of an `AsyncProducer`, whose answers are of type `BatchReply`."""

    __slots__ = ()
    result: Callable[..., Awaitable[BatchReply]]  # type: ignore[assignment]
    first: Callable[..., Awaitable[BatchReply]]  # type: ignore[assignment]
