"""The asyncio producer: the verbs of `producer.client`, to be awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Any, Self, TypeVar

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
from producer.session.funnel import Funnel
from producer.session.handle import AsyncBatchHandle, AsyncHandle
from producer.session.pending import Pending
from producer.session.pump import pumped_async
from producer.session.readers import ReplyTask
from producer.session.requests import DEFAULT_OPTIONS, Options, Outgoing, options_of, options_of_many
from producer.session.session import SHADOW_ENTRIES_MAX, Session, id_of, watch
from producer.settings import ProducerSettings
from producer.transport.connection import connect_async, driver_errors, let_go, script_text
from producer.transport.link import Script

#: Connections for commands; the rest waits its turn.
_CONNECTIONS_MAX = 4
_T = TypeVar("_T")


class AsyncProducer:
    """Pushes contexts into the queue and receives the answers, in one event loop: that of its first use.

    In another one, as in a forked process, it refuses at once; make one in each.

    Thousands of tasks share one connection for commands and one for replies: requests that are
    submitted while a round trip is under way go out together in the next.

    Example:
        async with AsyncProducer() as producer:
            reply = await producer.predict(context)  # (5, 768) -> reply.vector (768,)
    """

    def __init__(self, url: str | None = None, *, settings: ProducerSettings | None = None) -> None:
        self._session = Session(url, settings, lambda: asyncio.get_running_loop().create_future())
        self._commands = connect_async(self.settings)
        self._reader = ReplyTask(self._session)
        self._submit = Script(script_text("producer", "submit")).on_async(self._commands)
        self._cancel = Script(script_text("producer", "cancel")).on_async(self._commands)
        self._funnel = Funnel(self._send)
        self._start_lock = asyncio.Lock()
        self._turns = asyncio.Semaphore(_CONNECTIONS_MAX)
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None  # the first one that it was used in

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

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """As `Producer.start`."""
        self._check_open()
        async with self._start_lock:
            self._check_open()
            if not self._reader.started:
                asked_at_s = self._session.clock.asks()
                with suppress(
                    AuthenticationFailed
                ):  # a user may be without this right, and works all the same
                    self._session.clock.measured(asked_at_s, await self._call(self._commands.time()))
                await self._call(self._commands.xread({self._session.cursor.stream: "0-0"}, count=1))
                self._check_open()
                self._reader.start()

    async def close(self) -> None:
        """As `Producer.close`. When its event loop has ended, only the connections are left to be dropped.

        Raises:
            ProducerClosed: Its event loop is another one, and still runs.
        """
        if self._closed or self._session.elsewhere:
            return
        if self._loop is not None and self._loop.is_closed():
            self._closed = True
            self._reader.let_go()
            let_go(self._commands)
            return
        self._check_loop()
        self._closed = True
        await self._reader.stop(self._commands)
        self._session.close("the producer was closed before the answer came")
        await self._funnel.close()
        await self._commands.aclose()

    # -- requests -----------------------------------------------------------------------------

    async def submit(
        self, context: Any, *, block: bool = False, options: Options | None = None, **fields: Any
    ) -> AsyncHandle:
        """As `Producer.submit`."""
        handles = await self.submit_many([context], block=block, options=options_of(options, fields))
        return handles[0]

    async def submit_many(
        self,
        contexts: Sequence[Any],
        *,
        block: bool = False,
        options: Sequence[Options] | Options = DEFAULT_OPTIONS,
    ) -> list[AsyncHandle]:
        """As `Producer.submit_many`."""
        await self._measure()
        outgoing = self._session.prepare_all(contexts, options)
        try:
            pending = await self._deliver(outgoing, block=block)
            return [self._handle(item, answer) for item, answer in zip(outgoing, pending, strict=True)]
        except QueueError as error:
            error.accepted = [self._handle(outgoing[i], pending) for i, pending in error.accepted]
            raise

    async def predict(self, context: Any, *, timeout_ms: float | None = None, **fields: Any) -> Reply:
        """As `Producer.predict`."""
        handle = await self.submit(context, **fields)
        return await handle.result(timeout_ms)

    async def predict_many(
        self,
        contexts: Iterable[Any] | AsyncIterable[Any],
        *,
        in_flight: int = 1024,
        options: Options = DEFAULT_OPTIONS,
    ) -> AsyncIterator[tuple[int, Reply | QueueError]]:
        """As `Producer.predict_many`; the contexts may come from an asynchronous iterable.

        Answers are yielded while that one is waited for.
        """
        options = options_of_many(options)
        await self.start()
        stream = pumped_async(contexts, in_flight, lambda chunk, put: self.submit_chunk(chunk, options, put))
        async with aclosing(stream) as answers:
            async for answer in answers:
                yield answer

    async def submit_batch(
        self, contexts: Any, *, block: bool = False, options: Options | None = None, **fields: Any
    ) -> AsyncBatchHandle:
        """As `Producer.submit_batch`."""
        await self._measure()
        item = self._session.prepare_batch(contexts, options_of(options, fields))
        [pending] = await self._deliver([item], block=block)
        timeout_ms = self.settings.result_timeout_ms
        return AsyncBatchHandle(pending, timeout_ms, self.cancel, item.deadline_ms)

    async def predict_batch(
        self, contexts: Any, *, timeout_ms: float | None = None, **fields: Any
    ) -> BatchReply:
        """As `Producer.predict_batch`."""
        handle = await self.submit_batch(contexts, **fields)
        return await handle.result(timeout_ms)

    async def cancel(self, request: AsyncHandle | AsyncBatchHandle | str) -> bool:
        """As `Producer.cancel`."""
        request_id = id_of(request)
        keys, arguments = self._session.cancel_call(request_id)
        if await self._call_twice(lambda: self._cancel(keys, arguments)) != 1:
            return False
        self._session.inflight.settle(request_id, Cancelled(f"request {request_id} was cancelled"))
        return True

    async def report_truth(self, request: AsyncHandle | str, vector: Any) -> bool:
        """As `Producer.report_truth`."""
        entry: Any = self._session.truth_entry(request, vector)
        if entry is None:
            return False
        truths = self._session.keys.truths
        await self._call_twice(
            lambda: self._commands.xadd(truths, entry, maxlen=SHADOW_ENTRIES_MAX, approximate=True)
        )
        return True

    # -- I/O ----------------------------------------------------------------------------------

    async def _call(self, command: Awaitable[_T]) -> _T:
        async with self._turns:
            task = asyncio.current_task()
            asked = task.cancelling() if task is not None else 0
            with driver_errors(self.settings.url):
                answer = await command
            if task is not None and task.cancelling() > asked:
                raise asyncio.CancelledError  # the driver loses one that meets an answer
            return answer

    async def _call_twice(self, command: Callable[[], Awaitable[Any]]) -> Any:
        self._check_open()
        try:
            return await self._call(command())
        except ServerUnavailable:
            self._check_open()  # it may have been closed meanwhile
            return await self._call(command())

    def _check_open(self) -> None:
        self._session.check_process()
        if self._closed:
            raise ProducerClosed("this producer is closed; make a new one")
        self._check_loop()
        if self._reader.failed:
            raise ProducerClosed("this producer's reply reader was cancelled; make a new producer")

    def _check_loop(self) -> None:
        running = asyncio.get_running_loop()
        self._loop = self._loop or running
        if self._loop is not running:
            raise ProducerClosed("this producer was used in another event loop before; make one in each loop")

    async def _measure(self) -> None:
        if not self._session.clock.known:
            with suppress(ServerError):
                await self.start()

    async def _deliver(self, outgoing: Sequence[Outgoing], *, block: bool) -> list[Any]:
        with self._session.delivery(outgoing, block=block) as delivery:
            while not delivery.done:
                try:
                    await self.start()
                    batch = delivery.batch()
                    pause_ms = delivery.landed(await self._funnel.send(batch) if batch else [])
                except ServerError as error:
                    pause_ms = delivery.failed(error)
                if pause_ms:
                    await asyncio.sleep(pause_ms / 1000)
            return delivery.pending

    async def _send(self, batch: Sequence[Outgoing]) -> list[int]:
        keys, arguments = self._session.submit_call(batch)
        return checked_statuses(await self._call(self._submit(keys, arguments)), len(batch))

    def _handle(self, item: Outgoing, pending: Pending) -> AsyncHandle:
        return AsyncHandle(pending, self.settings.result_timeout_ms, self.cancel, item.deadline_ms)

    async def submit_chunk(
        self, chunk: Sequence[tuple[int, Any]], options: Options, put: Callable[[Any], None]
    ) -> None:
        """As `Producer.submit_chunk`."""
        indices, outgoing, refused = self._session.prepare_each(chunk, options)
        for item in refused:
            put(item)
        try:
            accepted = list(enumerate(await self._deliver(outgoing, block=True)))
        except QueueError as error:
            accepted = list(error.accepted)
            for i in set(range(len(indices))) - {i for i, _ in accepted}:
                put((indices[i], error))
        for i, answer in accepted:
            watch(answer, indices[i], put)
