"""The requests that wait for their answers. No I/O: both producers feed it reply bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from producer import wire
from producer.errors import QueueError, QueueFull, error_from_code
from producer.messages import Failure, Reply


class FutureLike(Protocol):
    """What `concurrent.futures.Future` and `asyncio.Future` have in common."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...


class Pending:
    """One request in flight: a future for the first answer and one for the final answer.

    They are the same future unless a provisional answer was asked for.
    """

    __slots__ = ("final", "first", "first_latency_ms", "id", "latency_ms", "sample_key", "started_at")

    def __init__(self, request_id: str, key: str, final: FutureLike, first: FutureLike) -> None:
        self.id = request_id
        self.sample_key = key
        self.final = final
        self.first = first
        self.started_at = time.perf_counter()
        self.first_latency_ms: float | None = None
        self.latency_ms: float | None = None

    def settle(self, outcome: Reply | QueueError) -> None:
        """Resolves the futures that this outcome answers."""
        waited_ms = (time.perf_counter() - self.started_at) * 1000
        if self.first_latency_ms is None:
            self.first_latency_ms = waited_ms
        provisional = isinstance(outcome, Reply) and outcome.provisional
        if not provisional:
            self.latency_ms = waited_ms
        for future in {self.first} if provisional else {self.first, self.final}:
            if not future.done():
                if isinstance(outcome, Reply):
                    future.set_result(outcome)
                else:
                    future.set_exception(outcome)


class Inflight:
    """Pending requests by id.

    Attributes:
        stray: Replies whose request is not pending: a second final answer, or one that came after
            the producer gave the request up. A healthy system shows 0.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pending: dict[str, Pending] = {}
        self._lock = threading.Lock()
        self.stray = 0

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, pending: Pending) -> None:
        """Registers a request, before it is sent.

        Raises:
            QueueFull: This producer already waits for as many answers as it may.
        """
        with self._lock:
            if len(self._pending) >= self._limit:
                raise QueueFull(
                    f"{self._limit} requests of this producer are in flight, its limit "
                    "(in_flight_max); collect some answers first",
                    retry_after_ms=10,
                )
            self._pending[pending.id] = pending

    def discard(self, request_id: str) -> None:
        """Forgets a request that was not accepted."""
        with self._lock:
            self._pending.pop(request_id, None)

    def on_reply(self, payload: bytes, deliver: Callable[[Pending, Reply | QueueError], None]) -> None:
        """Takes one reply's bytes and hands its outcome to `deliver`.

        Raises:
            WireError: Bytes that no worker of this version sends.
        """
        message = wire.decode_reply(payload)
        outcome: Reply | QueueError
        if isinstance(message, Failure):
            outcome = error_from_code(message.code, message.message)
        else:
            outcome = message
        with self._lock:
            if isinstance(message, Reply) and message.provisional:
                pending = self._pending.get(message.id)
            else:
                pending = self._pending.pop(message.id, None)
        if pending is None:
            # A provisional answer can be overtaken by the final one; that is not a second answer.
            self.stray += not (isinstance(message, Reply) and message.provisional)
            return
        deliver(pending, outcome)

    def fail_all(self, make_error: Callable[[str], QueueError]) -> list[tuple[Pending, QueueError]]:
        """Empties the table; returns what to tell each waiter."""
        with self._lock:
            left, self._pending = list(self._pending.values()), {}
        return [(pending, make_error(pending.id)) for pending in left]
