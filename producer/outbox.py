"""One submit call on its way into the queue. No I/O: the two producers send what it hands out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from producer.errors import DuplicateRequest, ProducerClosed, QueueError, QueueFull, ServerError
from producer.inflight import FutureLike, Inflight, Pending
from producer.keys import Keys
from producer.outage import Backoff, Outage
from producer.requests import Outgoing, now_ms
from producer.settings import ProducerSettings

#: Requests in one call of submit.lua; a script holds up every other client while it runs.
SEND_COUNT_MAX = 256
_FULL_PAUSE_MS = 20


class Delivery:
    """Takes requests into the queue, in order, through refusals and outages.

    A shell does the I/O:

        with delivery:
            while not delivery.done:
                batch = delivery.batch()
                ... send it, then delivery.landed(statuses) or delivery.failed(error) ...
                ... wait for the milliseconds that either returned ...

    Leaving the block early gives up what was not accepted.

    Attributes:
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
        self._outage = outage
        self._backoff = Backoff()
        self._refusal: QueueFull | None = None
        self._began_at_ms = now_ms()
        self.pending: list[Pending] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            if isinstance(error, QueueError):
                reason = error
                reason.accepted = self.pending[: self._next]
            else:
                reason = ProducerClosed("the submit was interrupted")
            for index in range(self._next, len(self.pending)):
                if index in self._own:
                    # Settled, not only forgotten: another call may share this pending answer.
                    self._inflight.settle(self.pending[index].id, reason)

    @property
    def done(self) -> bool:
        """Whether every request is in the queue, or has its outcome."""
        return self._next == len(self._outgoing)

    def batch(self) -> list[Outgoing]:
        """Registers and returns what to send next; empty when there is nothing, or no room here."""
        stop = min(self._next + SEND_COUNT_MAX, len(self._outgoing))
        self._sent, self._refusal = [], None
        for index in range(self._next, stop):
            item = self._outgoing[index]
            if index == len(self.pending):
                try:
                    self._register(index, item)
                except QueueFull as error:
                    self._refusal = error
                    break
            if index in self._own:
                self._sent.append(index)
        if not self._sent:
            self._next = len(self.pending)
        return [self._outgoing[index] for index in self._sent]

    def landed(self, statuses: Sequence[int]) -> float:
        """Takes submit.lua's statuses of the last batch.

        Returns:
            How long to wait before the next batch, in milliseconds.

        Raises:
            QueueFull: There is no room, and this call does not block, or has waited long enough.
        """
        self._outage.over()
        self._backoff.reset()
        for index, status in zip(self._sent, statuses, strict=True):
            if status < 0:
                self._next = index
                return self._full(self._queue_full())
            if status == 0:
                item = self._outgoing[index]
                self._inflight.settle(item.id, _duplicate(item.id, "another producer enqueued it"))
        if self._sent:
            self._next = max(self._sent[-1] + 1, self._next)
        return 0.0 if self._refusal is None else self._full(self._refusal)

    def failed(self, error: ServerError) -> float:
        """Takes a failure to send the last batch; the server may or may not have it.

        A repeat is safe: the server knows this client's requests by their ids.

        Returns:
            How long to wait before the same batch is sent again, in milliseconds.

        Raises:
            ServerError: The error, when it is not worth another try, or time is up.
        """
        self._outage.failed(error)
        pause_ms = self._backoff.next_ms()
        left_ms = self._left_ms()
        if not self._block:
            left_ms = min(left_ms, self._settings.retry_ms - self._backoff.lasts_ms)
        if not error.retryable or left_ms <= 0:
            raise error
        return min(pause_ms, left_ms)

    def _register(self, index: int, item: Outgoing) -> None:
        pending, new = self._inflight.add(item, self._make_future)
        self.pending.append(pending)
        if new and item.named and self._inflight.answered(item.id):
            kept = self._inflight.kept(item.id)
            early = _duplicate(item.id, "this producer has its answer already")
            self._inflight.settle(item.id, early if kept is None else kept)
        elif new:
            self._own.add(index)

    def _full(self, error: QueueFull) -> float:
        left_ms = self._left_ms()
        if not self._block or left_ms <= 0:
            raise error
        return min(_FULL_PAUSE_MS, left_ms)

    def _left_ms(self) -> float:
        """Until the first deadline or, without any, the result timeout."""
        deadlines = [item.expires_at_ms for item in self._outgoing[self._next :] if item.expires_at_ms]
        return min(deadlines, default=self._began_at_ms + self._settings.result_timeout_ms) - now_ms()

    def _queue_full(self) -> QueueFull:
        settings = self._settings
        return QueueFull(
            f"queue {settings.queue!r} is at its limit of {settings.entries_max} entries or "
            f"{settings.bytes_max} bytes; retry later, add workers, or submit with block=True",
            retry_after_ms=100,
        )


def _duplicate(request_id: str, who: str) -> DuplicateRequest:
    return DuplicateRequest(
        f"request id {request_id!r} was used within the window, and {who}; it is not run again: "
        "wait at the first request's handle, or send with a new id"
    )


def submit_arguments(
    batch: Sequence[Outgoing], keys: Keys, settings: ProducerSettings, client: str
) -> list[str | int | bytes]:
    """The ARGV of lua/submit.lua for these requests."""
    arguments: list[str | int | bytes] = [
        settings.entries_max,
        settings.bytes_max,
        settings.seen_window_ms,
        keys.seen_prefix,
        client,
    ]
    for item in batch:
        arguments += (item.id, item.payload)
    return arguments
