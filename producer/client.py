"""The synchronous producer: thousands of requests in flight, one reply channel, pushed answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self, Unpack, cast

from producer.core import Core
from producer.errors import QueueError
from producer.messages import BatchReply, Reply
from producer.options import (
    DEFAULT_OPTIONS,
    OptionFields,
    Options,
    SubmitFields,
    options_of,
    options_of_many,
)
from producer.session.handle import BatchHandle, Handle
from producer.session.pump import pumped
from producer.session.threads import ThreadChannel
from producer.settings import ProducerSettings
from producer.transport.verbs import T, Verb, run, together


class Producer(Core[Handle, BatchHandle]):
    """Pushes contexts into the queue and receives the answers.

    Use it as a context manager. Threads may share one producer. A forked process needs its own: in a
    child every call raises ProducerClosed, so does waiting for an answer, and leaving the block does nothing.

    Example:
        with Producer() as producer:
            reply = producer.predict(context)  # (5, 768) -> reply.vector (768,)

    Args:
        partitions: How many the queue has; None for a queue without. Limits, such as `entries_max` and
            `in_flight_max`, are each partition's own. A partition whose node is away fails its own requests
            only; none is sent to another one, where it might run twice. `predict_many` waits for such a
            node, as `submit` does with `block`, and the stream with it.
    """

    _channel: Callable[[ProducerSettings], Any] = ThreadChannel
    _pause, _together = staticmethod(time.sleep), staticmethod(together)
    _handle, _batch_handle = Handle, BatchHandle

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Checks the server and starts the reply reader; `submit` calls it when you did not.

        Raises:
            ServerUnavailable, AuthenticationFailed: The server, or that of every partition, cannot be used.
            ProducerClosed: This producer was closed, or made before a fork.
        """
        run(self._starting())

    def close(self) -> None:
        """Stops reading; whoever still waits gets ProducerClosed. In the child of a fork it does nothing."""
        run(self._closing())

    def submit(
        self,
        context: Any,
        *,
        block: bool = False,
        options: Options | None = None,
        **fields: Unpack[OptionFields],
    ) -> Handle:
        """Sends one context; returns as soon as the queue has it.

        Args:
            context: Shape (5, 768), unit-norm rows, oldest first.
            block: Wait, until the deadline (or, without one, the result timeout), for room when
                the queue is full and for the server when it is away, instead of raising. When for
                most of `settings.seen_window_ms` it cannot be told whether the server has the request,
                the handle tells in the end: by its answer, or by RequestLost.
            options: An `Options`; or give its fields as keyword arguments.

        Raises:
            InvalidRequest: The context or an option breaks the contract; nothing was sent.
            DeadlineExceeded: The deadline is not in the future; nothing was sent.
            QueueFull: The queue, or this producer, is at its limit.
            ProducerClosed: This producer was closed, or made before a fork.
            ServerUnavailable, ServerOutOfMemory, AuthenticationFailed: See `producer.errors`. The
                server may have got the request; the same `request_id` again is safe.
        """
        given = options_of(options, fields) if fields else options or DEFAULT_OPTIONS
        [handle] = self._sent(self._submitting([context], given, block))
        return cast(Handle, handle)

    def _sent(self, verb: Verb[T]) -> T:
        """Runs a verb that sends, not in the turn of a `predict` that a signal handler interrupted here."""
        if (reader := self.channels[0].reader) is not None:
            reader.interrupt()
        return run(verb)

    def submit_many(
        self,
        contexts: Sequence[Any],
        *,
        block: bool = False,
        options: Sequence[Options] | Options = DEFAULT_OPTIONS,
    ) -> list[Handle]:
        """Sends several contexts, 256 in a round trip; a wrong one refuses all.

        A `request_id` that is in flight shares the answer of the first request; one that was used
        within `settings.seen_window_ms` gives a handle whose result is DuplicateRequest.

        Raises:
            QueueError: Any error of `submit`. Some requests may have been accepted: their handles are in
                the error's `accepted`, in order; with partitions, those of the whole ones first.
        """
        return self._sent(self._submitting(contexts, options, block))

    def predict(
        self, context: Any, *, timeout_ms: float | None = None, **fields: Unpack[SubmitFields]
    ) -> Reply:
        """Sends one context and waits for its final answer. Arguments and errors as `submit`."""
        block, options = fields.pop("block", False), fields.pop("options", None)
        given = options_of(options, fields) if fields else options or DEFAULT_OPTIONS
        reader, lead = None if self._spread or block else self.channels[0].reader, None
        try:
            lead = reader.claim() if reader is not None else None
            [handle] = (run if reader else self._sent)(self._submitting([context], given, block))
            return cast(Reply, handle.wait(False, timeout_ms, lead))
        except BaseException:
            if reader is not None:
                reader.abandon(lead)
            raise

    def predict_many(
        self, contexts: Iterable[Any], *, in_flight: int = 1024, options: Options = DEFAULT_OPTIONS
    ) -> Iterator[tuple[int, Reply | QueueError]]:
        """Yields `(index, answer)` as the answers come, not in order; each index once.

        A request that fails yields its error in place of an answer; the others go on. At most
        `in_flight` requests wait at once, so that the iterable may be longer than memory; they go out
        in calls of half as many, and of at most 64, or fewer when the iterable is slow; partitions take
        turns. It is asked for more in this thread, and answers that come meanwhile are yielded after that.
        When it raises, so does this, after the answers to what it gave.

        Args:
            options: Of all of them, so without `request_id` and `position`.

        Raises:
            InvalidRequest: `in_flight` is below 1, or the options name one context.
            ServerUnavailable, AuthenticationFailed, ProducerClosed: See `start`.
        """
        options = options_of_many(options)
        self.start()
        return pumped(
            contexts,
            in_flight,
            self._chunk_max,
            lambda chunk, put: self._sent(self._streaming(options, chunk, put)),
        )

    def submit_batch(
        self,
        contexts: Any,
        *,
        block: bool = False,
        options: Options | None = None,
        **fields: Unpack[OptionFields],
    ) -> BatchHandle:
        """Sends many contexts as one request, for jobs that want throughput (docs/wire.md, Batches).

        It has one id and one answer. Escalation rules that look at the lane or the tokens hold for all
        of it; what other rules flag is told row by row, and not escalated: send those rows singly.
        Arguments and errors as `submit`; the text of an InvalidRequest begins with the number of the context.

        Args:
            contexts: Shape (n, 5, 768), n from 1 to `settings.batch_contexts_max`; or `Windows` over
                documents, which hold each vector once.
        """
        [handle] = self._sent(self._submitting([contexts], options_of(options, fields), block, batched=True))
        return cast(BatchHandle, handle)

    def submit_batches(
        self,
        batches: Sequence[Any],
        *,
        block: bool = False,
        options: Sequence[Options] | Options = DEFAULT_OPTIONS,
    ) -> list[BatchHandle]:
        """Sends several batches in one round trip; arguments and errors as `submit_many`."""
        return self._sent(self._submitting(batches, options, block, batched=True))

    def predict_batch(
        self, contexts: Any, *, timeout_ms: float | None = None, **fields: Unpack[SubmitFields]
    ) -> BatchReply:
        """Sends many contexts as one request and waits for its final answer, as `submit_batch`."""
        return self.submit_batch(contexts, **fields).result(timeout_ms)

    def cancel(self, request: Handle | BatchHandle | str) -> bool:
        """Takes a request back that no worker has at the moment, wherever it waits.

        Also one that was escalated and waits for a fallback. One that a worker has leased is not
        taken back, even when that worker died and the lease has to run out first.

        Returns:
            True: no answer will be computed any more, and its handle's result is Cancelled.
            False: too late, sent longer ago than `settings.seen_window_ms`, or not this
            producer's; the answer comes as if nothing had been asked.

        Raises:
            ServerUnavailable, ProducerClosed: It may, or may not, have been taken back.
        """
        return run(self._cancelling(request))

    def report_truth(self, request: Handle | str, vector: Any) -> bool:
        """Reports the true next vector of an earlier request, for the shadow evaluation.

        Args:
            request: The handle; its request id, in the process that sent it; or, anywhere, its place in its
                sequence, as "sequence#position".
            vector: Shape (768,), unit norm.

        Returns:
            True if it was sent: only truths of requests that may be sampled are (at most 5 %).
        """
        return run(self._reporting(request, vector))
