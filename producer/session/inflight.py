"""The requests that wait for their answers, without I/O: the reply readers feed it bytes."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from producer import errors
from producer.messages import Answer, BatchReply, Failure
from producer.protocol import wire
from producer.session.handle import BaseHandle
from producer.session.requests import Outgoing
from producer.session.times import AnswerTimes

#: Request ids whose answer is remembered, and sample keys kept for `report_truth` by id.
REMEMBERED_MAX = 65_536
#: Answers kept of requests that were given up: a submit call or two, and a few kilobytes each.
KEPT_MAX = 1_024
#: A request this long past its deadline was lost by the server: workers end late ones when they read them.
LOST_S = 30.0
#: A request that waits for longer is asked for (producer/session/losses.py).
OVERDUE_S = 5.0
#: Both are looked for so often.
SWEEP_S = 2.0
#: Ends that a repeat of the submit does not take back.
_FINAL = (errors.Cancelled, errors.DuplicateRequest)
H = TypeVar("H", bound=BaseHandle)


class Inflight:
    """Handles of the requests in flight, by id.

    Attributes:
        clock_s: A monotonic clock.
        stray: Final replies whose request is not in flight: a second answer, or one that came after
            the producer gave the request up. A healthy system shows 0.
        sweep_at_s: When it is to look for such.
        swept: Requests that ended here because no answer came, or will come.
        odd: Replies that could not be taken for what they are; each was skipped.
        overdue: Requests that got in and wait for long, at the last sweep.
        handles: By id.
        times: Counts the times of the answers; None where nobody asked for it.
    """

    def __init__(
        self, limit: int, window_ms: int = 60_000, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock_s = clock_s
        self._limit, self._window_s = limit, window_ms / 1000
        self.handles: dict[str, Any] = {}
        self._contexts = 0
        self._answered: OrderedDict[str, float] = OrderedDict()
        #: Named requests that were given up here, with the answer if one came after all.
        self._given_up: OrderedDict[str, Answer | errors.QueueError | None] = OrderedDict()
        self._late: OrderedDict[str, None] = OrderedDict()
        self.sweep_at_s = clock_s() + SWEEP_S
        #: Nothing is called while it is held: so no signal handler comes between, which may wait for an
        #: answer that another thread cannot take then.
        self._lock = threading.RLock()
        #: Out of the table, and maybe without its answer still: an interrupt came between.
        self._settling: BaseHandle | None = None
        self._closed = ""
        self.overdue: list[BaseHandle] = []
        self.times: AnswerTimes | None = None
        self.stray = self.odd = self.swept = 0

    def __len__(self) -> int:
        return len(self.handles)

    def add(self, outgoing: Outgoing, make_handle: Callable[[Outgoing], H]) -> tuple[H, bool]:
        """Registers a request, before it is sent; gives its handle, and whether it is to be sent.

        An id that is in flight already shares the handle of the first request. One whose answer came within
        the window is a duplicate, unless the submit was given up before: then that answer is its own.

        Raises:
            QueueFull: This producer already waits for as many answers as it may.
            ProducerClosed: `close` was called: no answer would be received.
        """
        if self._closed:
            raise errors.ProducerClosed(f"request {outgoing.id}: {self._closed}")
        known: H | None = self.handles.get(outgoing.id)
        if known is not None:
            return known, False
        answered_s = self._answered.get(outgoing.id, -math.inf)
        # The server's window begins at the enqueue and this one at the answer, so that it never ends first:
        # the server would call the repeat accepted, and no answer would come.
        if outgoing.named and self.clock_s() - answered_s < self._window_s:
            return self._had(make_handle(outgoing)), False
        # One batch may go a little beyond: else a small limit would never let it in.
        if self._contexts >= self._limit:
            raise self._full()
        handle = make_handle(outgoing)
        if outgoing.deadline_ms:
            handle.lost_at_s = self.clock_s() + outgoing.deadline_ms / 1000 + LOST_S
        try:
            with self._lock:
                had = outgoing.id in self._answered and self._answered[outgoing.id] > answered_s
                # Another thread was faster, with the same id or to the last slot: so look again.
                if not (had or outgoing.id in self.handles or self._contexts >= self._limit or self._closed):
                    self.handles[outgoing.id] = handle
                    self._contexts += handle.contexts
                    return handle, True
        except BaseException:  # an interrupt: nobody knows yet that it is in flight
            if self.handles.get(outgoing.id) is handle:
                self.settle(outgoing.id, errors.ProducerClosed("the submit was interrupted"))
            raise
        return self.add(outgoing, lambda _: handle)

    def _had(self, handle: H) -> H:
        kept = self._given_up.pop(handle.id, None)
        handle.settle(kept or duplicate(handle.id, "this producer has its answer already"))
        return handle

    def _full(self) -> errors.QueueFull:
        return errors.QueueFull(
            f"{self._limit} contexts of this producer are in flight, its limit (in_flight_max); "
            "collect some answers first",
            retry_after_ms=10,
        )

    def settle(self, request_id: str, outcome: Answer | errors.QueueError) -> bool:
        """Ends a request on this side; False when it is not in flight any more."""
        handle = self.handles.get(request_id)
        if handle is None:
            return False
        if handle.named and not isinstance(outcome, _FINAL):  # before it is out: its answer may come then
            _remember(self._given_up, request_id, None, KEPT_MAX)
        with self._lock:
            if request_id not in self.handles or self.handles[request_id] is not handle:
                return False
            del self.handles[request_id]
            self._contexts -= handle.contexts
        handle.settle(outcome)
        return True

    def on_reply(self, payload: bytes, entry_id: bytes = b"") -> None:
        """Takes one reply's bytes, of this entry of the stream, and settles the request that it answers.

        It is repeated when something interrupted it, and does then what is left to do.
        """
        message = wire.decode_reply(payload)
        handle: Any = self.handles.get(message.id)
        settling: Any = self._settling
        if handle is None and settling is not None and settling.id == message.id:
            handle = settling
        if isinstance(message, Failure):
            outcome: Any = errors.error_from_code(message.code, message.message, retryable=message.retryable)
        else:
            outcome, rows = message, len(message) if isinstance(message, BatchReply) else 0
            if handle is not None and handle.rows != rows:
                raise errors.WireError(f"request {message.id} got an answer to other contexts")
            if message.provisional:
                # One that the final answer has overtaken is dropped: that is no second answer.
                if handle is not None:
                    handle.settle(message)
                return
        if handle is None or handle.named:
            # Only ids that a caller chose can come again; ours are random. `add` looks in the other order.
            _remember(self._answered, message.id, self.clock_s(), REMEMBERED_MAX)
        with self._lock:
            if message.id in self.handles:
                self._settling = settling = handle = self.handles[message.id]
                del self.handles[message.id]
                self._contexts -= handle.contexts
        if handle is None or handle is not settling:  # the latter: somebody ended it meanwhile
            return self._unasked(message.id, handle, outcome)
        handle.settle(outcome)
        if self.times is not None:
            self.times.note(entry_id, handle, outcome)
        self._settling = None

    def _unasked(self, request_id: str, handle: Any, outcome: Answer | errors.QueueError) -> None:
        self.stray += handle is None and request_id not in self._late
        if request_id in self._given_up:
            self._given_up[request_id] = outcome

    def sweep(self) -> bool:
        """Ends what is long past its deadline, and notes what is overdue; returns whether anything is.

        To be called at `sweep_at_s`, also while the server is away; other losses are found by asking it.
        """
        now_s = self.clock_s()
        self.sweep_at_s = now_s + SWEEP_S
        waiting = list(self.handles.values())  # one step, in which no other thread comes between
        self.overdue = [one for one in waiting if one.got_in_at_s + OVERDUE_S <= now_s]
        self.give_up([one for one in waiting if one.lost_at_s <= now_s], _too_late)
        return bool(self.overdue)

    def give_up(self, lost: Iterable[BaseHandle], make_error: Callable[[str], errors.QueueError]) -> None:
        """Ends requests to which no answer will come, so that their slots are free and nobody waits on."""
        for handle in lost:
            if self.handles.get(handle.id) is handle:
                _remember(self._late, handle.id, None, REMEMBERED_MAX)
                if self.settle(handle.id, make_error(handle.id)):
                    self.swept += 1

    def close(self, why: str) -> None:
        """Empties the table, tells each who waits, and takes no more."""
        with self._lock:
            self._closed = why
            left, self.handles, self._contexts = self.handles, {}, 0
        for handle in left.values():
            handle.settle(errors.ProducerClosed(f"request {handle.id}: {why}"))

    def forked(self, why: str) -> None:
        """In the child of a fork: closes. Another thread may have held the lock."""
        self._lock = threading.RLock()
        self.close(why)


def duplicate(request_id: str, who: str) -> errors.DuplicateRequest:
    """The error of a request whose id is known; it says to whom."""
    return errors.DuplicateRequest(
        f"request id {request_id!r} was used within the window, and {who}; it is not run again: "
        "wait at the first request's handle, or send with a new id"
    )


def _too_late(request_id: str) -> errors.ResultTimeout:
    return errors.ResultTimeout(
        f"no answer to request {request_id} came within {LOST_S:g} s of its deadline; the server "
        "may have lost it (a failover, a flush): send it again"
    )


def _remember(table: OrderedDict[str, Any], request_id: str, value: object, limit: int) -> None:
    table[request_id] = value
    if len(table) > limit:
        table.popitem(last=False)
