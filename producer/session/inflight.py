"""The requests that wait for their answers, without I/O: the reply readers feed it bytes."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from producer.errors import (
    Cancelled,
    DuplicateRequest,
    ProducerClosed,
    QueueError,
    QueueFull,
    ResultTimeout,
    WireError,
    error_from_code,
)
from producer.messages import Answer, Failure
from producer.protocol import wire
from producer.session.pending import FutureLike, Pending
from producer.session.requests import Outgoing

#: Request ids whose answer is remembered, and sample keys kept for `report_truth` by id.
REMEMBERED_MAX = 65_536
#: Answers kept of requests that were given up: a submit call or two, and a few kilobytes each.
KEPT_MAX = 1_024
#: A request this long past its deadline was lost by the server: workers end late ones when they read them.
LOST_S = 30.0
#: A request that waits for longer is asked for (producer/session/losses.py).
OVERDUE_S = 5.0
#: How often both are looked for.
SWEEP_S = 2.0
FORKED = "this producer was made before a fork; make one in each process"
#: Ends that a repeat of the submit does not take back.
_FINAL = (Cancelled, DuplicateRequest)


class Inflight:
    """Pending requests by id.

    Attributes:
        stray: Final replies whose request is not pending: a second answer, or one that came after
            the producer gave the request up. A healthy system shows 0.
        swept: Requests that ended here because no answer came, or will come.
        overdue: Requests that got in and wait for long, as of the last sweep.
    """

    def __init__(
        self, limit: int, window_ms: int = 60_000, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._window_s = window_ms / 1000
        self._clock_s = clock_s
        self._pending: dict[str, Pending] = {}
        self._contexts = 0
        self._answered: OrderedDict[str, float] = OrderedDict()
        self._given_up: OrderedDict[str, None] = OrderedDict()
        self._kept: OrderedDict[str, Answer | QueueError] = OrderedDict()
        self._late: OrderedDict[str, None] = OrderedDict()
        self._sweep_at_s = clock_s() + SWEEP_S
        self._lock = threading.Lock()
        self._closed: Callable[[str], QueueError] | None = None
        self.overdue: list[Pending] = []
        self.stray = self.swept = 0

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, outgoing: Outgoing, make_future: Callable[[], FutureLike]) -> tuple[Pending, bool]:
        """Registers a request, before it is sent.

        Returns:
            Its pending answer, and whether it is a new one: an id that is in flight already
            shares the answer of the first request, and must not be sent again.

        Raises:
            QueueFull: This producer already waits for as many answers as it may.
            ProducerClosed: `close` was called: no answer would be received.
        """
        with self._lock:
            if self._closed is not None:
                raise self._closed(outgoing.id)
            pending = self._pending.get(outgoing.id)
            if pending is not None:
                return pending, False
            # One batch may go a little beyond: else a small limit would never let it in.
            if self._contexts >= self._limit:
                raise QueueFull(
                    f"{self._limit} contexts of this producer are in flight, its limit "
                    "(in_flight_max); collect some answers first",
                    retry_after_ms=10,
                )
            deadline_s = outgoing.deadline_ms / 1000 or math.inf
            lost_at_s = self._clock_s() + deadline_s + LOST_S
            pending = self._pending[outgoing.id] = Pending(outgoing, make_future, lost_at_s)
            self._contexts += pending.count
            return pending, True

    def answered(self, request_id: str) -> bool:
        """Says whether this producer got the final answer of a request with this id within the window.

        The server's window begins at the enqueue and this one at the answer, so that it never
        ends first: the server would call the repeat accepted, and no answer would come.
        """
        at_s = self._answered.get(request_id)
        return at_s is not None and self._clock_s() - at_s < self._window_s

    def kept(self, request_id: str) -> Answer | QueueError | None:
        """The answer that came to a request after its submit was given up; handed out once.

        A submit that raised for want of the server's word may be repeated with its id; the answer
        to the first try, which did get in, is then the answer to the repeat.
        """
        with self._lock:
            return self._kept.pop(request_id, None)

    def settle(self, request_id: str, outcome: Answer | QueueError) -> bool:
        """Ends a request on this side; False when it is not pending any more."""
        with self._lock:
            pending = self._take(request_id)
            if pending is not None and pending.named and not isinstance(outcome, _FINAL):
                _remember(self._given_up, request_id, None, KEPT_MAX)
        if pending is None:
            return False
        pending.settle(outcome)
        return True

    def on_reply(self, payload: bytes) -> None:
        """Takes one reply's bytes and settles the request that it answers.

        Raises:
            WireError: Bytes that no worker of this version sends, or not to this request.
        """
        message = wire.decode_reply(payload)
        outcome = message if not isinstance(message, Failure) else _error_of(message)
        if not isinstance(outcome, QueueError):
            waits = self._pending.get(message.id)
            if waits is not None and not waits.fits(outcome):
                raise WireError(f"request {message.id} got an answer to another number of contexts")
            if outcome.provisional:
                # One that the final answer has overtaken is dropped: that is no second answer.
                if waits is not None:
                    waits.settle(outcome)
                return
        with self._lock:
            pending = self._pending.pop(message.id, None)
            if pending is None:
                self.stray += message.id not in self._late
            else:
                self._contexts -= pending.count
            if pending is None or pending.named:
                # Only ids that a caller chose can come again; ours are random.
                _remember(self._answered, message.id, self._clock_s(), REMEMBERED_MAX)
            if pending is None and message.id in self._given_up:
                del self._given_up[message.id]
                _remember(self._kept, message.id, outcome, KEPT_MAX)
        if pending is not None:
            pending.settle(outcome)

    def got_in(self, pending: Iterable[Pending]) -> None:
        """Notes that the server has them: from now on they can be lost."""
        now_s = self._clock_s()
        for one in pending:
            one.got_in_at_s = now_s

    def sweep(self) -> bool:
        """Ends what is long past its deadline, and notes what is overdue; returns whether it looked.

        The reply readers call this again and again; it looks every `SWEEP_S`. Who has a deadline is told
        also when the server stays away; other losses are found by asking it.
        """
        now_s = self._clock_s()
        if now_s < self._sweep_at_s:
            return False
        self._sweep_at_s = now_s + SWEEP_S
        with self._lock:
            waiting = list(self._pending.values())
        self.overdue = [one for one in waiting if one.got_in_at_s + OVERDUE_S <= now_s]
        self.give_up([one for one in waiting if one.lost_at_s <= now_s], _too_late)
        return True

    def give_up(self, lost: Iterable[Pending], make_error: Callable[[str], QueueError]) -> None:
        """Ends requests to which no answer will come, so that their slots are free and nobody waits on."""
        with self._lock:
            lost = [one for one in lost if self._pending.get(one.id) is one]
            for pending in lost:
                self._take(pending.id)
                _remember(self._late, pending.id, None, REMEMBERED_MAX)
                if pending.named:
                    _remember(self._given_up, pending.id, None, KEPT_MAX)
        self.swept += len(lost)
        for pending in lost:
            pending.settle(make_error(pending.id))

    def _take(self, request_id: str) -> Pending | None:
        pending = self._pending.pop(request_id, None)
        if pending is not None:
            self._contexts -= pending.count
        return pending

    def close(self, make_error: Callable[[str], QueueError]) -> None:
        """Empties the table, tells each waiter, and takes no more."""
        with self._lock:
            self._closed = make_error
            left, self._pending, self._contexts = list(self._pending.values()), {}, 0
        for pending in left:
            pending.settle(make_error(pending.id))

    def forked(self) -> None:
        """In the child of a fork: as `close`; another thread may have held the lock."""
        self._lock = threading.Lock()
        self.close(lambda request_id: ProducerClosed(f"request {request_id}: {FORKED}"))


def _too_late(request_id: str) -> ResultTimeout:
    return ResultTimeout(
        f"no answer to request {request_id} came within {LOST_S:g} s of its deadline; the server "
        "may have lost it (a failover, a flush): send it again"
    )


def _remember(table: OrderedDict[str, Any], request_id: str, value: object, limit: int) -> None:
    table[request_id] = value
    if len(table) > limit:
        table.popitem(last=False)


def _error_of(failure: Failure) -> QueueError:
    return error_from_code(failure.code, failure.message, retryable=failure.retryable)
