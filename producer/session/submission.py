"""One submit call on its way into the queue, without I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from producer import errors
from producer.session.handle import BaseHandle
from producer.session.inflight import Inflight, duplicate
from producer.session.outage import Outage, pause_ms
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

    The channel does the I/O: while any are left, it sends the `next_requests`, calls `landed` or
    `failed`, and waits for the milliseconds that either returned. When it ends early it calls `give_up`.

    Attributes:
        left: The requests that are neither in the queue nor have an outcome, by number.
        handles: One for each request that was registered so far, in order.
    """

    def __init__(
        self,
        outgoing: Sequence[Outgoing],
        inflight: Inflight,
        settings: ProducerSettings,
        make_handle: Callable[[Outgoing], BaseHandle],
        outage: Outage,
        *,
        block: bool,
    ) -> None:
        self._make_handle, self._block = make_handle, block
        self._inflight, self._settings, self._outage = inflight, settings, outage
        # A refusal does not end the call: the requests behind it may be of another level, or have got in by
        # an earlier try whose answer was lost.
        self.left = dict(enumerate(outgoing))
        self._sent: list[int] = []
        self._failures, self._failing_since_s = 0, 0.0  # since the last success
        self._refusal: errors.QueueFull | None = None
        self._unsure_since_s: float | None = None
        self._began_at_s = self._tried_at_s = time.monotonic()
        self.handles: list[Any] = []

    def give_up(self, error: BaseException) -> None:
        """Ends what was not accepted; `error.accepted` gets the handle of each that was."""
        reason: Any = error
        if not isinstance(error, errors.QueueError):
            reason = errors.ProducerClosed("the submit was interrupted")
        # Settled, not only forgotten: another call may share the handle. One that is not in flight any more
        # has its answer: that came while the call still tried.
        lost = {
            handle
            for index, handle in enumerate(self.handles)
            if index in self.left and self._inflight.settle(handle.id, reason)
        }
        reason.accepted = [handle for handle in self.handles if handle not in lost]

    def next_requests(self) -> list[Outgoing]:
        """Registers and returns what to send next; empty when there is nothing, or no room here."""
        self._sent, self._refusal, self._tried_at_s = [], None, time.monotonic()
        left_bytes = SEND_BYTES_MAX
        for index, item in list(islice(self.left.items(), SEND_COUNT_MAX)):
            if index == len(self.handles):
                try:
                    handle, new = self._inflight.add(item, self._make_handle)
                except errors.QueueFull as error:
                    self._refusal = error
                    break
                self.handles.append(handle)
                if not new:
                    del self.left[index]
                    continue
            self._sent.append(index)
            left_bytes -= len(item.payload)
            if left_bytes <= 0:
                break
        return [self.left[index] for index in self._sent]

    def landed(self, statuses: Sequence[int]) -> float:
        """Takes the statuses of what was sent last; returns the milliseconds until the next send.

        Raises:
            QueueFull: There is no room, and this call does not block, or has waited long enough.
            StreamUnusable: A stream of the queue takes nothing, and somebody has to mend it.
        """
        if self._outage.lasts:
            self._outage.over()
        self._failures, self._unsure_since_s = 0, None
        now_s = self._inflight.clock_s()
        for index, status in zip(self._sent, statuses, strict=True):
            if status > 0:
                self.handles[index].got_in_at_s = now_s  # from now on it can be lost
            elif status == 0:
                name = self.left[index].id
                self._inflight.settle(name, duplicate(name, "another producer enqueued it"))
            if status >= 0:
                del self.left[index]
        least = min(statuses, default=0)
        if least == _UNUSABLE:
            raise self._unusable()
        if least < 0:
            self._refusal = self._queue_full()
        return 0.0 if self._refusal is None else self._refused_ms(self._refusal)

    def _refused_ms(self, refusal: errors.QueueFull) -> float:
        left_ms = self._left_ms()
        if not self._block or left_ms <= 0:
            raise refusal
        return min(_FULL_PAUSE_MS, left_ms)

    def failed(self, error: errors.ServerError) -> float:
        """Takes a failure to send; returns the milliseconds until the same is sent again.

        A repeat is safe: the server knows this client's requests by their ids, for a while. After that,
        what may have arrived counts as accepted: its answer comes, or it is found to be lost.

        Raises:
            ServerError: The error, when it is not worth another try, or time is up.
        """
        self._outage.failed(error)
        now_s = time.monotonic()
        if not self._failures:
            self._failing_since_s = now_s
        self._failures += 1
        if getattr(error, "maybe_done", False) and self._unsure_since_s is None:
            self._unsure_since_s = self._tried_at_s
        if self._block and self._is_forgotten():
            for index in self._sent:
                self.handles[index].got_in_at_s = self._inflight.clock_s()
                del self.left[index]
            return 0.0
        left_ms = self._left_ms()
        if not self._block:
            left_ms = min(left_ms, self._settings.retry_ms - (now_s - self._failing_since_s) * 1000)
        if not error.retryable or left_ms <= 0:
            raise error
        return min(pause_ms(self._failures), left_ms)

    def _is_forgotten(self) -> bool:
        """True if a repeat could arrive after the server forgot the ids, and run a second time."""
        if self._unsure_since_s is None:
            return False
        window_ms = self._settings.seen_window_ms
        margin_ms = min(2 * self._settings.command_timeout_ms, window_ms / 2)
        return (time.monotonic() - self._unsure_since_s) * 1000 > window_ms - margin_ms

    def _left_ms(self) -> float:
        """Until the first deadline or, without any, the result timeout; whatever the wall clock does."""
        deadlines = [item.deadline_ms for item in self.left.values() if item.deadline_ms]
        limit_ms = min(deadlines, default=self._settings.result_timeout_ms)
        return limit_ms - (time.monotonic() - self._began_at_s) * 1000

    def _unusable(self) -> errors.StreamUnusable:
        return errors.StreamUnusable(
            f"a stream of queue {self._settings.queue!r} takes no entry any more (its last id is used up, or "
            "something else has its name); whoever operates the queue mends it: `amn doctor --repair`"
        )

    def _queue_full(self) -> errors.QueueFull:
        settings = self._settings
        return errors.QueueFull(
            f"queue {settings.queue!r} is at its limit of {settings.entries_max} entries or "
            f"{settings.bytes_max} bytes (half of that for low priority, five quarters for high); "
            "retry later, add workers, or submit with block=True",
            retry_after_ms=100,
        )
