"""The I/O of an asyncio producer with the server of one queue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any

from producer.errors import AuthenticationFailed, ProducerClosed
from producer.session.channel import SHADOW_ENTRIES_MAX
from producer.session.funnel import Funnel
from producer.session.handle import BaseHandle
from producer.session.readers import ReplyTask
from producer.session.requests import Outgoing
from producer.session.session import Session, checked_statuses
from producer.session.verbs import T, Verb
from producer.settings import ProducerSettings
from producer.transport.connection import connect_async, driver_errors, let_go, script_text
from producer.transport.link import Script

#: Connections for commands; the rest waits its turn.
_CONNECTIONS_MAX = 4


async def run_async(verb: Verb[T]) -> T:
    """Runs a verb: awaits each of its steps, and gives it the result or the error."""
    try:
        step = next(verb)
        while True:
            try:
                found = await step[0](*step[1:])
            except BaseException as error:
                step = verb.throw(error)
            else:
                step = verb.send(found)
    except StopIteration as ended:
        result: T = ended.value
        return result


async def together_async(verbs: Sequence[Verb[Any]]) -> list[Any]:
    """Runs verbs at the same time; the result or the error of each."""
    return await asyncio.gather(*map(run_async, verbs), return_exceptions=True)


class AsyncChannel:
    """A few connections for commands and one for replies, shared by the tasks of one event loop."""

    def __init__(self, settings: ProducerSettings) -> None:
        self.session = Session(settings, lambda: asyncio.get_running_loop().create_future())
        self.started = False
        self._url = settings.url
        self._commands = connect_async(settings)
        self._reader = ReplyTask(self.session)
        self._submit = Script(script_text("producer", "submit")).on_async(self._commands)
        self._cancel = Script(script_text("producer", "cancel")).on_async(self._commands)
        self._funnel = Funnel(self._send)
        self.send = self._funnel.send
        self._start_lock = asyncio.Lock()
        self._turns = asyncio.Semaphore(_CONNECTIONS_MAX)
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None  # the first one that it was used in

    def check_open(self) -> None:
        """Refuses to work when closed, in a forked child, and in another event loop."""
        self.session.check_open(self._closed)
        self._check_loop()
        if self._reader.failed:
            raise ProducerClosed("this producer's reply reader was cancelled; make a new producer")

    def _check_loop(self) -> None:
        running = asyncio.get_running_loop()
        self._loop = self._loop or running
        if self._loop is not running:
            raise ProducerClosed("this producer was used in another event loop before; make one in each loop")

    async def start(self) -> None:
        """Checks the server, measures its clock, and starts the reply reader."""
        self.check_open()
        async with self._start_lock:
            self.check_open()
            if self.started:
                return
            clock = self.session.clock
            asked_at_s = clock.asks()
            with suppress(AuthenticationFailed):  # a user may be without this right, and works nevertheless
                clock.measured(asked_at_s, await self._call(self._commands.time()))
            await self._call(self._commands.xread({self.session.cursor.stream: "0-0"}, count=1))
            self.check_open()
            self._reader.start()
            self.started = True

    async def _send(self, requests: Sequence[Outgoing]) -> list[int]:
        keys, arguments = self.session.submit_call(requests)
        return checked_statuses(await self._call(self._submit(keys, arguments)), len(requests))

    async def cancel(self, request_id: str) -> Any:
        """Runs lua/cancel.lua; gives what it returns."""
        return await self._call(self._cancel(*self.session.cancel_call(request_id)))

    async def report(self, request: BaseHandle | str, vector: Any) -> bool:
        """Sends a true vector; gives whether it may belong to a sample."""
        entry: Any = self.session.truth_entry(request, vector)
        if entry is not None:
            truths = self.session.keys.truths
            await self._call(self._commands.xadd(truths, entry, maxlen=SHADOW_ENTRIES_MAX, approximate=True))
        return entry is not None

    async def close(self) -> None:
        """Stops the reader and closes the connections.

        When its event loop has ended, only the connections are left to be dropped; in the child of a fork
        there are none.

        Raises:
            ProducerClosed: Its event loop is another one, and still runs.
        """
        if self._closed or self.session.elsewhere:
            return
        if self._loop is not None and self._loop.is_closed():
            self._closed = True
            self._reader.let_go()
            let_go(self._commands)
            return
        self._check_loop()
        self._closed = True
        await self._reader.stop(self._commands)
        self.session.close("the producer was closed before the answer came")
        await self._funnel.close()
        await self._commands.aclose()

    async def _call(self, command: Awaitable[Any]) -> Any:
        async with self._turns:
            task = asyncio.current_task()
            asked = task.cancelling() if task is not None else 0
            with driver_errors(self._url):
                answer = await command
            if task is not None and task.cancelling() > asked:
                raise asyncio.CancelledError  # the driver loses one that meets an answer
            return answer
