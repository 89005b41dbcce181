"""The I/O of an asyncio producer with the server of one queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from redis.exceptions import NoScriptError

from producer.errors import ProducerClosed, ServerUnavailable
from producer.session.channel import CLOSED, Channel, checked_statuses
from producer.session.handle import BaseHandle
from producer.session.replies import BLOCK_MS, Reader
from producer.session.requests import Outgoing
from producer.session.submission import SEND_BYTES_MAX, SEND_COUNT_MAX
from producer.settings import ProducerSettings
from producer.transport.async_link import AsyncLink, end
from producer.transport.connection import LOST, connect_async, let_go
from producer.transport.link import Word, written
from producer.transport.verbs import Verb, run_async

#: Connections for commands; the rest waits its turn.
_CONNECTIONS_MAX = 4
#: Callers read for themselves after so many requests in a row that were alone in flight: several callers
#: who are in step share their round trips.
_ALONE_MIN = 8
#: The task looks after the connections so often meanwhile, and waits so long for that of submits.
_REST_S, _KEEP_S = 5.0, 0.1
#: Those who got an answer go on before more answers are asked for: they are woken within so many turns.
_TURNS = 2
CANCELLED = (
    "this producer's reply reader was cancelled, as all tasks of its event loop were; make a new producer"
)


Send = Callable[[Sequence[Outgoing]], Awaitable[list[int]]]


class Funnel:
    """Sends at once when idle; what arrives while it sends goes out together in the next call."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: list[tuple[Sequence[Outgoing], asyncio.Future[list[int]]]] = []
        self._task: asyncio.Task[None] | None = None

    async def send(self, batch: Sequence[Outgoing]) -> list[int]:
        """Sends these requests, maybe among others; returns their statuses."""
        future: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain(), name="amn-submit")
        return await future

    async def close(self) -> None:
        """Ends the sending task; whoever waits for it gets ProducerClosed."""
        if self._task is not None:
            await end(self._task)
        _refuse(self._waiting, asyncio.CancelledError())

    async def _drain(self) -> None:
        while some := self._next():
            try:
                statuses = await self._send([item for batch, _ in some for item in batch])
            except BaseException as error:
                _refuse(some, error)
                if not isinstance(error, Exception):
                    raise
                continue
            start = 0
            for batch, future in some:
                stop = start + len(batch)
                if not future.done():  # its task may have been cancelled meanwhile
                    future.set_result(statuses[start:stop])
                start = stop
            if self._task is not None and self._task.cancelling():  # the cancellation met the answer
                return

    def _next(self) -> list[tuple[Sequence[Outgoing], asyncio.Future[list[int]]]]:
        # A request is not sent if its task was cancelled before.
        self._waiting = [item for item in self._waiting if not item[1].done()]
        count = size = size_bytes = 0
        for batch, _ in self._waiting:
            size += len(batch)
            size_bytes += sum(len(item.payload) for item in batch)
            if count and (size > SEND_COUNT_MAX or size_bytes > SEND_BYTES_MAX):
                break
            count += 1
        some, self._waiting = self._waiting[:count], self._waiting[count:]
        return some


def _refuse(some: list[tuple[Sequence[Outgoing], asyncio.Future[list[int]]]], error: BaseException) -> None:
    if not isinstance(error, Exception):  # the sending task was cancelled, not those who wait for it
        error = ProducerClosed("the producer was closed while the request was sent")
    for _, future in some:
        if not future.done():
            future.set_exception(error)


class AsyncChannel(Channel):
    """One connection for submits, one for replies and a few for the rest, for the tasks of one event loop."""

    def __init__(self, settings: ProducerSettings) -> None:
        super().__init__(settings)
        self._commands = connect_async(settings)
        self._link, self._head = AsyncLink(self._commands), written(7, *self.submit_head())
        self.funnel, self._turns = Funnel(self._send), asyncio.Semaphore(_CONNECTIONS_MAX)
        self._start_lock, self.reader = asyncio.Lock(), ReplyTask(self)

    def starting(self) -> Verb[None]:
        """Does what it says of every channel, for one task at a time."""
        self.check_open()  # in the child of a fork nobody may ever release the lock
        yield (self._start_lock.acquire,)
        try:
            yield from super().starting()
        finally:
            self._start_lock.release()

    def send(self, requests: Sequence[Outgoing]) -> Awaitable[list[int]]:
        """Runs lua/submit.lua; gives its statuses."""
        alone = len(requests) == len(self.inflight.handles) == 1
        return (self._send_alone if self.reader.claim(alone) else self.funnel.send)(requests)

    async def _send_alone(self, requests: Sequence[Outgoing]) -> list[int]:
        words = self.submit_script.by_hash, self._head, *requests[0][:4]
        statuses: list[int] = await self.reader.sent(words, *self.inflight.handles.values())
        if not statuses:
            self.check_open()  # it may have been closed meanwhile
        return statuses or await self.funnel.send(requests)

    async def execute(self, *words: Any) -> Any:
        """Sends one command when it has its turn; gives the server's answer."""
        execute: Any = self._commands.execute_command
        async with self._turns:
            task: Any = asyncio.current_task()
            asked, answer = task.cancelling(), await execute(*words)
            if task.cancelling() > asked:
                raise asyncio.CancelledError  # the driver loses one that meets an answer
            return answer

    async def _send(self, requests: Sequence[Outgoing]) -> list[int]:
        words = self.submit_script.by_hash, self._head, *(word for item in requests for word in item[:4])
        try:
            try:
                [answer] = await self._link.each([words])
            except LOST:  # a connection that broke while idle is noticed only by the next command on it
                self.check_open()  # it may have been closed meanwhile
                [answer] = await self._link.each([words])
            if isinstance(answer, NoScriptError):
                verb = self.submit_script.running(self.execute, *self.submit_call(requests))
                answer = await run_async(verb)
            if isinstance(answer, Exception):
                raise answer
            return checked_statuses(answer, len(requests))
        except ServerUnavailable:
            await self._link.close()  # what comes next on it may be the answer to this call
            raise

    async def disconnect(self) -> None:
        """Closes the connections."""
        await self.funnel.close()
        await self._link.close()
        await self._commands.aclose()

    def drop(self) -> None:
        """Drops the connections; its event loop has ended."""
        self.closed = CLOSED
        let_go(self.reader.client)
        let_go(self._commands)


class ReplyTask(Reader):
    """The reply reader of a task of the running event loop, or of the caller who waits for the only request.

    The task rests while requests come one after another. Each goes in one write with the read of its answer:
    who awaits that at once reads all answers of the exchange. What a caller leaves is the task's to read.
    """

    pause = staticmethod(asyncio.sleep)

    def __init__(self, channel: AsyncChannel) -> None:
        super().__init__(channel.settings.url, channel.clock, channel.cursor)
        self._channel, self._inflight = channel, channel.inflight
        self.client = connect_async(channel.settings, block_ms=BLOCK_MS)
        self._link = AsyncLink(self.client)
        self.each, self.drop = self._link.each, self._link.close
        self._task: asyncio.Task[Any] | None = None
        #: Who reads has the turn; the bell calls the task to it. Requests in a row that were alone in flight.
        self._turn, self._bell, self._alone = asyncio.Lock(), asyncio.Event(), 0
        #: The task that sent the last lone request, and the time limit of one that reads.
        self._caller: asyncio.Task[Any] | None = None
        self._limit: asyncio.Timeout | None = None

    def start(self) -> None:
        """Begins to read."""
        self._task = asyncio.create_task(self._run(), name="amn-replies")

    async def stop(self) -> None:
        """Ends the task."""
        if self._task is not None:
            await end(self._task)
        await self._link.close()
        await self.client.aclose()

    async def _run(self) -> None:
        try:
            await self._turn.acquire()
            await run_async(self.reading())
        finally:
            if not self._channel.closed:
                self._channel.closed = CANCELLED
                self._channel.inflight.close(CANCELLED)

    def stopping(self) -> bool:
        """True when the task was cancelled; the driver may have lost that: the loop would wait for ever."""
        return self._task is None or bool(self._task.cancelling())

    async def exchange(self) -> list[Any]:
        """The answers to the cursor's next commands, or to those that a caller sent and left."""
        if not self._link.due:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            await self._link.send(self._cursor.commands(bool(self._inflight.handles) or not self.claimed))
        return await self._link.read(self._link.due)

    async def rest(self) -> None:
        """Lets callers read, until one of them leaves something to read, or for a while."""
        if not self._inflight.handles:
            self._bell.clear()
            self._turn.release()
            with suppress(TimeoutError):
                async with asyncio.timeout(_REST_S):
                    await self._bell.wait()
            if not self._bell.is_set():
                with suppress(Exception):  # the connection of submits may have died at rest
                    async with asyncio.timeout(_KEEP_S):
                        await self._channel.funnel.send(())
                self._bell.set()  # nobody claims the turn from now on
            await self._turn.acquire()

    def claim(self, alone: bool) -> bool:
        """Tells whether a caller may take the turn, and calls the task where requests are not alone."""
        self._alone = self._alone + 1 if alone else 0
        self.claimed = self._alone >= _ALONE_MIN
        if not self.claimed:
            self._bell.set()
        return not (self._bell.is_set() or self._turn.locked())

    async def sent(self, command: tuple[Word, ...], handle: BaseHandle) -> list[int]:
        """Sends a submit together with the next read; its statuses, or none: then it is to be sent again."""
        statuses: list[int] = []
        await self._turn.acquire()
        try:
            task: Any = asyncio.current_task()
            caller, self._caller, asked = self._caller, task, task.cancelling()
            if caller is not task:  # others who begin in this turn of the loop stay in step with it
                await asyncio.sleep(0)
            if self.claimed and not self._channel.closed:
                with suppress(Exception):  # the task meets it too, and says what is wrong
                    await self._link.send([command, *self._cursor.commands()])
                    statuses = checked_statuses((await self._link.read(1))[0], 1)
                if task.cancelling() > asked:
                    raise asyncio.CancelledError  # the driver may lose one while it connects
        finally:
            if statuses == [1]:
                handle.lead = self._lead
                asyncio.get_running_loop().call_soon(self._unless_led, handle)
            else:
                self._leave()
        return statuses

    def _unless_led(self, handle: BaseHandle) -> None:
        if handle.lead is not None:  # its caller does something else before it waits, or never does
            handle.lead = None
            self._leave()

    async def _lead(self, limit_s: float) -> float:
        until_s = time.monotonic() + limit_s
        try:
            with suppress(Exception):
                async with asyncio.timeout(limit_s) as self._limit:
                    self._cursor.take(await self._link.read(self._link.due))
        finally:
            self._leave()
        return max(until_s - time.monotonic(), 0.0)

    def _leave(self) -> None:
        self._limit = None
        if self._link.due or self._inflight.handles:
            self._bell.set()
        self._turn.release()

    def wake(self, _: str) -> None:
        """Ends the wait of the caller who reads, whose request somebody else may have ended."""
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(0.0)
