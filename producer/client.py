"""The synchronous producer: thousands of requests in flight, one reply channel, pushed answers."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Self, cast

import redis

from producer import keys as schema
from producer import wire
from producer.checks import checked_vector
from producer.connection import BLOCK_MS, connect, driver_errors, script_text
from producer.errors import (
    DeadlineExceeded,
    ProducerClosed,
    QueueError,
    QueueFull,
    ResultTimeout,
    ServerError,
    WireError,
)
from producer.inflight import Inflight, Pending
from producer.keys import Keys
from producer.messages import Reply
from producer.requests import DEFAULT_OPTIONS, Options, Outgoing, new_id, now_ms, prepare
from producer.sampling import RATE_MAX, sampled
from producer.settings import ProducerSettings

_LOG = logging.getLogger("amn.producer")
_READ_COUNT = 512
_SHADOW_ENTRIES_MAX = 20_000
_REMEMBERED = 65_536
_CHUNK = 64


class Handle:
    """One request on its way.

    Attributes:
        id: The request id.
        sample_key: What the shadow sampling hashes (see `producer.sampling`).
    """

    __slots__ = ("_pending", "_producer", "id", "sample_key")

    def __init__(self, producer: Producer, pending: Pending) -> None:
        self._producer = producer
        self._pending = pending
        self.id = pending.id
        self.sample_key = pending.sample_key

    def result(self, timeout_ms: float | None = None) -> Reply:
        """Waits for the final answer.

        Raises:
            ResultTimeout: Nothing came within `timeout_ms` (default: settings.result_timeout_ms).
            QueueError: The failure that the worker named.
        """
        return self._wait(self._pending.final, timeout_ms)

    def first(self, timeout_ms: float | None = None) -> Reply:
        """Waits for the first answer: the provisional one if it was asked for, else the final."""
        return self._wait(self._pending.first, timeout_ms)

    def done(self) -> bool:
        """Whether the final answer, or failure, is here."""
        return self._pending.final.done()

    @property
    def latency_ms(self) -> float | None:
        """From submit to the final answer's arrival, or None before."""
        return self._pending.latency_ms

    @property
    def first_latency_ms(self) -> float | None:
        """From submit to the first answer's arrival, or None before."""
        return self._pending.first_latency_ms

    def _wait(self, future: Any, timeout_ms: float | None) -> Reply:
        limit_ms = self._producer.settings.result_timeout_ms if timeout_ms is None else timeout_ms
        try:
            return cast("Future[Reply]", future).result(limit_ms / 1000)
        except FutureTimeout:
            raise ResultTimeout(
                f"no answer to request {self.id} within {limit_ms:g} ms; is a worker running? (`amn doctor`)"
            ) from None


class Producer:
    """Pushes contexts into the queue and receives the answers.

    Use it as a context manager. Threads may share one producer.

    Example:
        with Producer() as producer:
            reply = producer.predict(context)  # (5, 768) -> reply.vector (768,)
    """

    def __init__(self, url: str | None = None, *, settings: ProducerSettings | None = None) -> None:
        self.settings = settings or ProducerSettings.from_environment(url=url)
        self.client_id = new_id()
        self._keys = Keys(self.settings.queue)
        self._commands = connect(self.settings)
        self._reads = connect(self.settings, block_ms=BLOCK_MS, retries=0)
        self._submit = self._commands.register_script(script_text("producer", "submit"))
        self._inflight = Inflight(self.settings.in_flight_max)
        self._sample_keys: OrderedDict[str, str] = OrderedDict()
        self._closed = threading.Event()
        self._reader: threading.Thread | None = None
        self._start_lock = threading.Lock()

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
        """
        with self._start_lock:
            if self._closed.is_set():
                raise ProducerClosed("this producer is closed; make a new one")
            if self._reader is None:
                with driver_errors(self.settings.url):
                    self._commands.ping()
                self._reader = threading.Thread(
                    target=self._read_replies, name="amn-replies", daemon=True
                )
                self._reader.start()

    def close(self) -> None:
        """Stops reading; whoever still waits gets ProducerClosed. Idempotent."""
        with self._start_lock:
            if self._closed.is_set():
                return
            self._closed.set()
        if self._reader is not None:
            self._reader.join(timeout=2 * BLOCK_MS / 1000 + 5)
            try:
                self._commands.delete(self._keys.replies(self.client_id))
            except redis.RedisError:
                pass  # the reply stream expires by itself
        self._fail_pending("the producer was closed before the answer came")
        self._commands.close()
        self._reads.close()

    # -- requests -----------------------------------------------------------------------------

    def submit(
        self, context: Any, *, block: bool = False, options: Options | None = None, **kwargs: Any
    ) -> Handle:
        """Sends one context; returns as soon as the queue has it.

        Args:
            context: Shape (5, 768), unit-norm rows, oldest first.
            block: Wait for room when the queue is full, until the deadline (or, without one, the
                result timeout), instead of raising QueueFull.
            options: An `Options`; or give its fields as keyword arguments.

        Raises:
            InvalidRequest: The context or an option breaks the contract; nothing was sent.
            QueueFull: The queue, or this producer, is at its limit.
            ServerUnavailable, ServerOutOfMemory, AuthenticationFailed: See `producer.errors`.
        """
        return self.submit_many([context], block=block, options=[options or Options(**kwargs)])[0]

    def submit_many(
        self,
        contexts: Sequence[Any],
        *,
        block: bool = False,
        options: Sequence[Options] | Options = DEFAULT_OPTIONS,
    ) -> list[Handle]:
        """Sends several contexts in one round trip; all or a QueueFull that says how many went.

        Raises:
            As `submit`. On QueueFull the first requests may have been accepted: their handles are
            in the error's `accepted`.
        """
        self.start()
        each = [options] * len(contexts) if isinstance(options, Options) else list(options)
        outgoing = [
            prepare(context, option, self.client_id, self.settings)
            for context, option in zip(contexts, each, strict=True)
        ]
        handles = []
        for item, option in zip(outgoing, each, strict=True):
            handles.append(self._register(item, option))
        self._send(outgoing, handles, block=block)
        return handles

    def predict(self, context: Any, *, timeout_ms: float | None = None, **kwargs: Any) -> Reply:
        """Sends one context and waits for its final answer. Arguments and errors as `submit`."""
        deadline_ms = kwargs.get("deadline_ms")
        wait_ms = deadline_ms + 1000 if timeout_ms is None and deadline_ms else timeout_ms
        return self.submit(context, **kwargs).result(wait_ms)

    def predict_many(
        self, contexts: Iterable[Any], *, in_flight: int = 1024, options: Options = DEFAULT_OPTIONS
    ) -> Iterator[tuple[int, Reply | QueueError]]:
        """Yields `(index, answer)` as the answers come, not in order.

        A request that fails yields its error in place of an answer; the others go on. At most
        `in_flight` requests wait at once, so that the iterable may be longer than memory.
        """
        done: queue.SimpleQueue[tuple[int, Reply | QueueError]] = queue.SimpleQueue()
        waiting = 0
        source = enumerate(contexts)
        exhausted = False
        while not exhausted or waiting:
            while not exhausted and waiting + _CHUNK <= max(in_flight, _CHUNK):
                chunk = [item for item, _ in zip(source, range(_CHUNK), strict=False)]
                exhausted = len(chunk) < _CHUNK
                waiting += len(chunk)
                self._submit_chunk(chunk, options, done)
            if waiting:
                yield done.get()
                waiting -= 1

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
        array = checked_vector(vector)
        if isinstance(request, Handle):
            key = request.sample_key
        else:
            key = self._sample_keys.get(request, request)
        if not sampled(key, RATE_MAX, self.settings.sample_salt):
            return False
        entry = {b"kind": b"truth", b"key": key.encode(), b"vector": wire.encode_vector(array)}
        with driver_errors(self.settings.url):
            self._commands.xadd(
                self._keys.shadow, cast(Any, entry), maxlen=_SHADOW_ENTRIES_MAX, approximate=True
            )
        return True

    @property
    def in_flight(self) -> int:
        """Requests without their final answer."""
        return len(self._inflight)

    @property
    def stray_replies(self) -> int:
        """Final answers that nobody waited for; 0 in a healthy system."""
        return self._inflight.stray

    # -- inside -------------------------------------------------------------------------------

    def _register(self, item: Outgoing, option: Options) -> Handle:
        final: Future[Reply] = Future()
        first: Future[Reply] = Future() if option.provisional else final
        pending = Pending(item.id, item.sample_key, final, first)
        self._inflight.add(pending)
        if item.sample_key != item.id:
            self._sample_keys[item.id] = item.sample_key
            if len(self._sample_keys) > _REMEMBERED:
                self._sample_keys.popitem(last=False)
        return Handle(self, pending)

    def _send(self, outgoing: list[Outgoing], handles: list[Handle], *, block: bool) -> None:
        sent = 0
        give_up_at_ms = min(
            (item.expires_at_ms for item in outgoing if item.expires_at_ms),
            default=now_ms() + self.settings.result_timeout_ms,
        )
        try:
            while True:
                sent += self._append(outgoing[sent:])
                if sent == len(outgoing):
                    return
                error = self._queue_full(handles[:sent])
                if not block:
                    raise error
                wait_ms = min(error.retry_after_ms, give_up_at_ms - now_ms())
                if wait_ms <= 0:
                    raise error
                time.sleep(wait_ms / 1000)
        except BaseException:
            for handle in handles[sent:]:
                self._inflight.discard(handle.id)
            raise

    def _append(self, outgoing: list[Outgoing]) -> int:
        """Runs submit.lua; returns how many requests, from the first, are in the queue."""
        settings = self.settings
        arguments: list[Any] = [
            settings.entries_max,
            settings.bytes_max,
            settings.seen_window_ms,
            self._keys.seen_prefix,
        ]
        for item in outgoing:
            arguments += (item.id, item.payload)
        with driver_errors(settings.url):
            statuses = cast(
                "list[int]",
                self._submit(keys=[self._keys.requests, self._keys.requests_bytes], args=arguments),
            )
        return next((i for i, status in enumerate(statuses) if status < 0), len(statuses))

    def _queue_full(self, accepted: list[Handle]) -> QueueFull:
        error = QueueFull(
            f"queue {self.settings.queue!r} is at its limit of {self.settings.entries_max} entries or "
            f"{self.settings.bytes_max} bytes; retry later, add workers, or submit with block=True",
            retry_after_ms=100,
        )
        error.accepted = accepted
        return error

    def _submit_chunk(
        self,
        chunk: list[tuple[int, Any]],
        options: Options,
        done: queue.SimpleQueue[tuple[int, Reply | QueueError]],
    ) -> None:
        good: list[tuple[int, Any]] = []
        for index, context in chunk:
            try:
                good.append((index, prepare(context, options, self.client_id, self.settings)))
            except (QueueError, DeadlineExceeded) as error:
                done.put((index, error))
        self.start()
        handles = [self._register(item, options) for _, item in good]
        for (index, _), handle in zip(good, handles, strict=True):
            future = cast("Future[Reply]", handle._pending.final)
            future.add_done_callback(lambda f, i=index: done.put((i, f.exception() or f.result())))  # type: ignore[misc]
        self._send([item for _, item in good], handles, block=True)

    def _read_replies(self) -> None:
        stream, last, pause_s = self._keys.replies(self.client_id), b"0-0", 0.05
        while not self._closed.is_set():
            try:
                with driver_errors(self.settings.url):
                    entries = self._read_once(stream, last)
                pause_s = 0.05
            except ServerError as error:
                _LOG.warning("reply_reader_waits_for_server: %s", error)
                self._closed.wait(pause_s)
                pause_s = min(2 * pause_s, 2.0)
                continue
            for entry_id, fields in entries:
                last = entry_id
                try:
                    self._inflight.on_reply(fields[schema.REPLY], Pending.settle)
                except (WireError, KeyError) as error:
                    _LOG.error("reply_undecodable: %s", error)

    def _read_once(self, stream: str, last: bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Trims what was read and blocks for more, in one round trip."""
        with self._reads.pipeline(transaction=False) as pipe:
            if last != b"0-0":
                pipe.execute_command("XTRIM", stream, "MINID", "=", _after(last))
            pipe.xread({stream: last}, count=_READ_COUNT, block=BLOCK_MS)  # type: ignore[dict-item]
            found = pipe.execute()[-1]
        return list(found[0][1]) if found else []

    def _fail_pending(self, text: str) -> None:
        for pending, error in self._inflight.fail_all(lambda i: ProducerClosed(f"request {i}: {text}")):
            pending.settle(error)


def _after(entry_id: bytes) -> str:
    milliseconds, _, sequence = entry_id.decode().partition("-")
    return f"{milliseconds}-{int(sequence) + 1}"

