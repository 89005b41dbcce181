"""A request that waits for its answer, and its futures."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from producer.errors import QueueError
from producer.messages import Answer, BatchReply
from producer.session.requests import Outgoing


class FutureLike(Protocol):
    """The methods that `ThreadFuture` and `asyncio.Future` have in common."""

    def done(self) -> bool:
        """Says whether it has its outcome."""
        ...

    def exception(self) -> BaseException | None:
        """The error, of one that is done."""
        ...

    def set_result(self, result: Any, /) -> None:
        """Gives it a reply."""
        ...

    def set_exception(self, exception: Any, /) -> None:
        """Gives it an error."""
        ...


class Pending:
    """One request in flight: a future for the first answer and one for the final answer.

    They are the same future unless a provisional answer was asked for.

    Attributes:
        got_in_at_s: When the server said that it has it; infinite before.
    """

    __slots__ = (
        "batched",
        "count",
        "deadline_ms",
        "final",
        "first",
        "first_latency_ms",
        "got_in_at_s",
        "id",
        "latency_ms",
        "level",
        "lost_at_s",
        "named",
        "sample_key",
        "started_at_s",
    )

    def __init__(
        self, outgoing: Outgoing, make_future: Callable[[], FutureLike], lost_at_s: float = math.inf
    ) -> None:
        self.lost_at_s = lost_at_s
        self.got_in_at_s = math.inf
        self.level = outgoing.level
        self.id = outgoing.id
        self.count = outgoing.count
        self.deadline_ms = outgoing.deadline_ms
        self.batched = outgoing.batched
        self.named = outgoing.named
        self.sample_key = outgoing.sample_key
        self.final = make_future()
        self.first = make_future() if outgoing.provisional else self.final
        self.started_at_s = time.perf_counter()
        self.first_latency_ms: float | None = None
        self.latency_ms: float | None = None

    def fits(self, answer: Answer) -> bool:
        """Says whether this can be its answer: one vector for a context, n for a batch of n."""
        if isinstance(answer, BatchReply):
            return self.batched and len(answer) == self.count
        return not self.batched

    def settle(self, outcome: Answer | QueueError) -> None:
        """Resolves the futures that this outcome answers."""
        waited_ms = (time.perf_counter() - self.started_at_s) * 1000
        if self.first_latency_ms is None:
            self.first_latency_ms = waited_ms
        if isinstance(outcome, QueueError) or not outcome.provisional:
            self.latency_ms = waited_ms
            futures = (self.final,) if self.first is self.final else (self.first, self.final)
        else:
            futures = (self.first,)
        for future in futures:
            if future.done():
                continue
            if isinstance(outcome, QueueError):
                future.set_exception(outcome)
                # Looked at once, so that asyncio does not complain of a handle that nobody awaits.
                future.exception()
            else:
                future.set_result(outcome)


_LOCK = threading.Lock()


def forked() -> None:
    """In the child of a fork: another thread may have held the lock."""
    global _LOCK
    _LOCK = threading.Lock()


class ThreadFuture:
    """The part of `concurrent.futures.Future` that an answer needs, at a third of its cost.

    That one makes a condition for each, whose waiters make a lock each; here all wait at one lock, which
    is held until the outcome is there. The first outcome counts.
    """

    __slots__ = ("_callbacks", "_done", "_error", "_gate", "_result")

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._gate.acquire()
        self._done = False
        self._result: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[ThreadFuture], object]] = []

    def done(self) -> bool:
        """Says whether it has its outcome."""
        return self._done

    def exception(self) -> BaseException | None:
        """The error, of one that is done."""
        return self._error

    def set_result(self, result: Any, error: BaseException | None = None, /) -> None:
        """Gives it a reply, or the error in its place."""
        with _LOCK:
            if self._done:
                return
            self._result, self._error, self._done = result, error, True
        self._gate.release()
        for callback in self._callbacks:
            callback(self)

    def set_exception(self, exception: BaseException, /) -> None:
        """Gives it an error."""
        self.set_result(None, exception)

    def result(self, timeout_s: float = 0.0) -> Any:
        """The reply, waited for.

        Raises:
            TimeoutError: It did not come in time.
            BaseException: The error that came in its place.
        """
        if not self._done and self._gate.acquire(timeout=max(0.0, timeout_s)):
            self._gate.release()  # the next waiter passes too
        if not self._done:
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._result

    def add_done_callback(self, callback: Callable[[ThreadFuture], object]) -> None:
        """Calls it with this future: now, or in the thread that brings the outcome."""
        with _LOCK:
            if not self._done:
                self._callbacks.append(callback)
                return
        callback(self)
