"""One submit call on its way into the queue, without I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from producer.errors import (
    DuplicateRequest,
    ProducerClosed,
    QueueError,
    QueueFull,
    ServerError,
    StreamUnusable,
)
from producer.session.inflight import Inflight
from producer.session.outage import Backoff, Outage
from producer.session.pending import FutureLike, Pending
from producer.session.requests import Outgoing
from producer.settings import ProducerSettings

#: Requests in one call of submit.lua; a script holds up every other client while it runs.
SEND_COUNT_MAX = 256
#: Bytes in one call; at least one request goes, however large.
SEND_BYTES_MAX = 4 * 1024**2
_FULL_PAUSE_MS = 20
#: Status of lua/submit.lua: the stream takes no entry any more.
_UNUSABLE = -2


class Submission:
    """Takes requests into the queue, in order, through refusals and outages.

    The verb around it does the I/O: until it is done, it sends the `next_requests`, calls `landed` or
    `failed`, and waits for the milliseconds that either returned. When it ends early it calls `give_up`.

    Attributes:
        done: Whether every request is in the queue, or has its outcome.
        pending: One per request that was registered so far, in order.
    """

    def __init__(
        self,
        outgoing: Sequence[Outgoing],
        inflight: Inflight,
        settings: ProducerSettings,
        make_future: Callable[[], FutureLike],
        outage: Outage,
        *,
        block: bool,
    ) -> None:
        self._outgoing = outgoing
        self._inflight = inflight
        self._settings = settings
        self._make_future = make_future
        self._block = block
        self._next = 0
        self._sent: list[int] = []
        self._own: set[int] = set()
        #: In the queue, or with its outcome. A refusal does not end the call: what comes behind it
        #: may be of another level, or have got in by an earlier try whose answer was lost.
        self._landed: set[int] = set()
        self._outage = outage
        self._backoff: Backoff | None = None  # since the last success
        self._refusal: QueueFull | None = None
        self._unsure_since_s: float | None = None
        self._began_at_s = self._tried_at_s = time.monotonic()
        self.pending: list[Pending] = []
        self.done = not outgoing

    def give_up(self, error: BaseException) -> None:
        """Ends what was not accepted; `error.accepted` gets index and pending answer of each that was."""
        reason = error if isinstance(error, QueueError) else ProducerClosed("the submit was interrupted")
        given_up = [i for i in range(len(self.pending)) if i in self._own and i not in self._landed]
        for index in given_up:
            # Settled, not only forgotten: another call may share this pending answer.
            if not self._inflight.settle(self.pending[index].id, reason):
                self._landed.add(index)  # it has its answer: that came while the call still tried
        lost = {self.pending[index] for index in given_up if index not in self._landed}
        reason.accepted = [(i, p) for i, p in enumerate(self.pending) if i in self._landed and p not in lost]

    def next_requests(self) -> list[Outgoing]:
        """Registers and returns what to send next; empty when there is nothing, or no room here."""
        while self._next in self._landed:
            self._next += 1
        self._sent, self._refusal, self._tried_at_s = [], None, time.monotonic()
        index, left_bytes = self._next, SEND_BYTES_MAX
        while index < len(self._outgoing) and len(self._sent) < SEND_COUNT_MAX and left_bytes > 0:
            if index == len(self.pending):
                try:
                    self._register(index, self._outgoing[index])
                except QueueFull as error:
                    self._refusal = error
                    break
            if index not in self._landed:
                self._sent.append(index)
                left_bytes -= len(self._outgoing[index].payload)
            index += 1
        return [self._outgoing[index] for index in self._sent]

    def landed(self, statuses: Sequence[int]) -> float:
        """Takes submit.lua's statuses of what was sent last.

        Returns:
            How long to wait before the next send, in milliseconds.

        Raises:
            QueueFull: There is no room, and this call does not block, or has waited long enough.
            StreamUnusable: A stream of the queue takes nothing, and somebody has to mend it.
        """
        if self._outage.lasts:
            self._outage.over()
        self._backoff = self._unsure_since_s = None
        refused = False
        got_in = []
        for index, status in zip(self._sent, statuses, strict=True):
            if status < 0:
                refused = True
                continue
            self._landed.add(index)
            if status > 0:
                got_in.append(self.pending[index])
            else:
                item = self._outgoing[index]
                self._inflight.settle(item.id, _duplicate(item.id, "another producer enqueued it"))
        self._inflight.got_in(got_in)
        self.done = len(self._landed) == len(self._outgoing)
        if _UNUSABLE in statuses:
            raise self._unusable()
        if refused:
            return self._full(self._queue_full())
        return 0.0 if self._refusal is None else self._full(self._refusal)

    def failed(self, error: ServerError) -> float:
        """Takes a failure to send; the server may or may not have it.

        A repeat is safe: the server knows this client's requests by their ids, for a while. After that,
        what may have arrived counts as accepted: its answer comes, or it is found to be lost.

        Returns:
            How long to wait before the same is sent again, in milliseconds.

        Raises:
            ServerError: The error, when it is not worth another try, or time is up.
        """
        self._outage.failed(error)
        self._backoff = self._backoff or Backoff()
        pause_ms = self._backoff.next_ms()
        if getattr(error, "maybe_done", False) and self._unsure_since_s is None:
            self._unsure_since_s = self._tried_at_s
        if self._block and self._is_forgotten():
            self._inflight.got_in(self.pending[index] for index in self._sent)
            self._landed.update(self._sent)
            self.done = len(self._landed) == len(self._outgoing)
            return 0.0
        left_ms = self._left_ms()
        if not self._block:
            left_ms = min(left_ms, self._settings.retry_ms - self._backoff.lasts_ms)
        if not error.retryable or left_ms <= 0:
            raise error
        return min(pause_ms, left_ms)

    def _is_forgotten(self) -> bool:
        """Says whether a repeat could arrive after the server forgot the ids, and run a second time."""
        if self._unsure_since_s is None:
            return False
        window_ms = self._settings.seen_window_ms
        margin_ms = min(2 * self._settings.command_timeout_ms, window_ms / 2)
        return (time.monotonic() - self._unsure_since_s) * 1000 > window_ms - margin_ms

    def _register(self, index: int, item: Outgoing) -> None:
        pending, new = self._inflight.add(item, self._make_future)
        self.pending.append(pending)
        if new and item.named and self._inflight.answered(item.id):
            kept = self._inflight.kept(item.id)
            early = _duplicate(item.id, "this producer has its answer already")
            self._inflight.settle(item.id, early if kept is None else kept)
            self._landed.add(index)
        elif new:
            self._own.add(index)
        else:
            self._landed.add(index)

    def _full(self, error: QueueFull) -> float:
        left_ms = self._left_ms()
        if not self._block or left_ms <= 0:
            raise error
        return min(_FULL_PAUSE_MS, left_ms)

    def _left_ms(self) -> float:
        """Until the first deadline or, without any, the result timeout; whatever the wall clock does."""
        waiting = (self._outgoing[i] for i in range(self._next, len(self._outgoing)) if i not in self._landed)
        deadlines = [item.deadline_ms for item in waiting if item.deadline_ms]
        limit_ms = min(deadlines, default=self._settings.result_timeout_ms)
        return limit_ms - (time.monotonic() - self._began_at_s) * 1000

    def _unusable(self) -> StreamUnusable:
        return StreamUnusable(
            f"a stream of queue {self._settings.queue!r} takes no entry any more (its last id is used up, or "
            "something else has its name); whoever operates the queue mends it: `amn doctor --repair`"
        )

    def _queue_full(self) -> QueueFull:
        settings = self._settings
        return QueueFull(
            f"queue {settings.queue!r} is at its limit of {settings.entries_max} entries or "
            f"{settings.bytes_max} bytes (half of that for low priority, five quarters for high); "
            "retry later, add workers, or submit with block=True",
            retry_after_ms=100,
        )


def _duplicate(request_id: str, who: str) -> DuplicateRequest:
    return DuplicateRequest(
        f"request id {request_id!r} was used within the window, and {who}; it is not run again: "
        "wait at the first request's handle, or send with a new id"
    )
