"""The synchronous producer: thousands of requests in flight, one reply channel, pushed answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Self

from producer.errors import (
    AuthenticationFailed,
    Cancelled,
    ProducerClosed,
    QueueError,
    ServerError,
    ServerUnavailable,
)
from producer.messages import BatchReply, Reply
from producer.session.calls import checked_statuses
from producer.session.future import Waiting
from producer.session.handle import BatchHandle, Handle
from producer.session.pending import Pending
from producer.session.pump import pumped
from producer.session.readers import ReplyThread
from producer.session.requests import DEFAULT_OPTIONS, Options, Outgoing, options_of, options_of_many
from producer.session.session import SHADOW_ENTRIES_MAX, Session, id_of, watch
from producer.settings import ProducerSettings
from producer.transport.connection import DRIVER_ERRORS, connect, script_text, translated
from producer.transport.link import Link, Script


class Producer:
    """Pushes contexts into the queue and receives the answers.

    Use it as a context manager. Threads may share one producer. A forked process needs its own: in a
    child every call raises ProducerClosed, so does waiting for an answer, and leaving the block does nothing.

    Example:
        with Producer() as producer:
            reply = producer.predict(context)  # (5, 768) -> reply.vector (768,)
    """

    def __init__(self, url: str | None = None, *, settings: ProducerSettings | None = None) -> None:
        self._session = Session(url, settings, Waiting)
        self._commands = connect(self.settings)
        self._reader = ReplyThread(self._session)
        self._submit_script = Script(script_text("producer", "submit"))
        self._submit = self._submit_script.on(self._commands)
        self._link, self._link_lock = Link(self._commands), threading.Lock()
        self._cancel = Script(script_text("producer", "cancel")).on(self._commands)
        self._closed = False
        self._start_lock = threading.Lock()

    @property
    def settings(self) -> ProducerSettings:
        """What this producer was told."""
        return self._session.settings

    @property
    def client_id(self) -> str:
        """Where its replies go; random."""
        return self._session.client_id

    @property
    def in_flight(self) -> int:
        """Requests without their final answer."""
        return len(self._session.inflight)

    @property
    def stray_replies(self) -> int:
        """Final answers that nobody waited for; 0 in a healthy system."""
        return self._session.inflight.stray

    # -- life ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Checks the server and starts the reply reader. `submit` calls it when you did not.

        Raises:
            ServerUnavailable, AuthenticationFailed: The server cannot be used.
            ProducerClosed: This producer was closed, or made before a fork.
        """
        self._check_open()
        if self._reader.started:
            return
        with self._start_lock:
            self._check_open()
            if not self._reader.started:
                asked_at_s = self._session.clock.asks()
                with suppress(
                    AuthenticationFailed
                ):  # a user may be without this right, and works all the same
                    self._session.clock.measured(asked_at_s, self._call(self._commands.time))
                # One read of what is to be read from now on: says more than that somebody is there.
                self._call(lambda: self._commands.xread({self._session.cursor.stream: "0-0"}, count=1))
                self._reader.start()

    def close(self) -> None:
        """Stops reading; whoever still waits gets ProducerClosed. Idempotent.

        In the child of a fork there is nothing to close: its copies of the connections are gone already.
        """
        if self._session.elsewhere:
            return
        with self._start_lock:
            if self._closed:
                return
            self._closed = True
        self._reader.stop(self._commands)
        self._session.close("the producer was closed before the answer came")
        self._link.close()
        self._commands.close()

    # -- requests -----------------------------------------------------------------------------

    def submit(
        self, context: Any, *, block: bool = False, options: Options | None = None, **fields: Any
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
        return self.submit_many([context], block=block, options=options_of(options, fields))[0]

    def submit_many(
        self,
        contexts: Sequence[Any],
        *,
        block: bool = False,
        options: Sequence[Options] | Options = DEFAULT_OPTIONS,
    ) -> list[Handle]:
        """Sends several contexts, 256 in a round trip.

        A `request_id` that is in flight shares the answer of the first request; one that was used
        within `settings.seen_window_ms` gives a handle whose result is DuplicateRequest.

        Raises:
            As `submit`. On QueueFull some requests may have been accepted: their handles are
            in the error's `accepted`, in order.
        """
        self._measure()
        outgoing = self._session.prepare_all(contexts, options)
        try:
            pending = self._deliver(outgoing, block=block)
            return [self._handle(item, answer) for item, answer in zip(outgoing, pending, strict=True)]
        except QueueError as error:
            error.accepted = [self._handle(outgoing[i], pending) for i, pending in error.accepted]
            raise

    def predict(self, context: Any, *, timeout_ms: float | None = None, **fields: Any) -> Reply:
        """Sends one context and waits for its final answer. Arguments and errors as `submit`."""
        return self.submit(context, **fields).result(timeout_ms)

    def predict_many(
        self, contexts: Iterable[Any], *, in_flight: int = 1024, options: Options = DEFAULT_OPTIONS
    ) -> Iterator[tuple[int, Reply | QueueError]]:
        """Yields `(index, answer)` as the answers come, not in order; each index once.

        A request that fails yields its error in place of an answer; the others go on. At most
        `in_flight` requests wait at once, so that the iterable may be longer than memory; they go out
        in calls of half as many, and of at most 64, or fewer when the iterable is slow. It is asked for
        more in this thread, and answers that come meanwhile are yielded after that. When it raises, so
        does this, after the answers to what it gave.

        Args:
            contexts: Each as `submit` takes it.
            options: Of all of them, so without `request_id` and `position`.

        Raises:
            InvalidRequest: `in_flight` is below 1, or the options name one context.
            ServerUnavailable, AuthenticationFailed, ProducerClosed: As `start`.
        """
        options = options_of_many(options)
        self.start()
        return pumped(contexts, in_flight, lambda chunk, put: self.submit_chunk(chunk, options, put))

    def submit_batch(
        self, contexts: Any, *, block: bool = False, options: Options | None = None, **fields: Any
    ) -> BatchHandle:
        """Sends many contexts as one request, for jobs that want throughput (docs/wire.md, Batches).

        It has one id and one answer. Escalation rules that look at the lane or the tokens hold for all
        of it; what other rules flag is told row by row, and not escalated: send those rows singly.

        Args:
            contexts: Shape (n, 5, 768), n from 1 to `settings.batch_contexts_max`.
            block, options: As `submit`; without `sequence` and `position`.

        Raises:
            As `submit`; the text of an InvalidRequest begins with the number of the context.
        """
        self._measure()
        item = self._session.prepare_batch(contexts, options_of(options, fields))
        [pending] = self._deliver([item], block=block)
        return BatchHandle(pending, self.settings.result_timeout_ms, self.cancel, item.deadline_ms)

    def predict_batch(self, contexts: Any, *, timeout_ms: float | None = None, **fields: Any) -> BatchReply:
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
        request_id = id_of(request)
        keys, arguments = self._session.cancel_call(request_id)
        if self._call_twice(lambda: self._cancel(keys, arguments)) != 1:
            return False
        self._session.inflight.settle(request_id, Cancelled(f"request {request_id} was cancelled"))
        return True

    def report_truth(self, request: Handle | str, vector: Any) -> bool:
        """Reports the true next vector of an earlier request, for the shadow evaluation.

        Args:
            request: The handle, or its request id.
            vector: Shape (768,), unit norm.

        Returns:
            Whether it was sent: only truths of requests that may be sampled are (at most 5 %).

        Raises:
            BadShape, NotFinite, BadNorm: The vector breaks the contract.
        """
        entry: Any = self._session.truth_entry(request, vector)
        if entry is None:
            return False
        truths = self._session.keys.truths
        self._call_twice(
            lambda: self._commands.xadd(truths, entry, maxlen=SHADOW_ENTRIES_MAX, approximate=True)
        )
        return True

    # -- I/O ----------------------------------------------------------------------------------

    def _call(self, command: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return command(*arguments)
        except DRIVER_ERRORS as error:
            raise translated(error, self.settings.url) from error

    def _call_twice(self, command: Callable[..., Any], *arguments: Any) -> Any:
        """A connection that broke while idle is noticed only by the next command on it."""
        self._check_open()
        try:
            return self._call(command, *arguments)
        except ServerUnavailable:
            self._check_open()  # it may have been closed meanwhile
            return self._call(command, *arguments)

    def _check_open(self) -> None:
        self._session.check_process()
        if self._closed:
            raise ProducerClosed("this producer is closed; make a new one")

    def _measure(self) -> None:
        """Starts, so that the first request too is stamped by the server's clock; an outage shows later."""
        if not self._session.clock.known:
            with suppress(ServerError):
                self.start()

    def _deliver(self, outgoing: Sequence[Outgoing], *, block: bool) -> list[Any]:
        """Takes the requests into the queue; returns their pending answers."""
        with self._session.delivery(outgoing, block=block) as delivery:
            while not delivery.done:
                try:
                    self.start()
                    batch = delivery.batch()
                    pause_ms = delivery.landed(self._send(batch) if batch else [])
                except ServerError as error:
                    pause_ms = delivery.failed(error)
                if pause_ms:
                    time.sleep(pause_ms / 1000)
            return delivery.pending

    def _send(self, batch: Sequence[Outgoing]) -> list[int]:
        if self._link_lock.acquire(blocking=False):
            try:
                words = self._session.submit_words(batch)
                found = self._call_twice(self._link.run_words, self._submit_script, words)
                return checked_statuses(found, len(batch))
            except ServerUnavailable:
                self._link.close()  # what comes next on it may be the answer to this call
                raise
            finally:
                self._link_lock.release()
        # Another thread is using the link: take a connection of the pool.
        found = self._call(self._submit, *self._session.submit_call(batch))
        return checked_statuses(found, len(batch))

    def _handle(self, item: Outgoing, pending: Pending) -> Handle:
        return Handle(pending, self.settings.result_timeout_ms, self.cancel, item.deadline_ms)

    def submit_chunk(
        self, chunk: Sequence[tuple[int, Any]], options: Options, put: Callable[[Any], None]
    ) -> None:
        """Sends numbered contexts; `(index, answer)` is put once each, now or when the answer comes."""
        indices, outgoing, refused = self._session.prepare_each(chunk, options)
        for item in refused:
            put(item)
        try:
            accepted = list(enumerate(self._deliver(outgoing, block=True)))
        except QueueError as error:
            accepted = list(error.accepted)
            for i in set(range(len(indices))) - {i for i, _ in accepted}:
                put((indices[i], error))
        for i, answer in accepted:
            watch(answer, indices[i], put)
