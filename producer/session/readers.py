"""The reply readers: one connection each that waits for answers, as a thread or as a task."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import redis

from producer.errors import ServerError
from producer.keys import WAKE
from producer.session.outage import Backoff, Outage
from producer.session.replies import BLOCK_MS
from producer.session.session import Session
from producer.transport.connection import (
    DRIVER_ERRORS,
    connect,
    connect_async,
    driver_errors,
    let_go,
    translated,
)
from producer.transport.link import Link

_CANCEL_AGAIN_S = 0.05
_CANCELLED = "its reply reader was cancelled, as all tasks of this event loop were"


class ReplyThread:
    """Feeds a session's cursor from a daemon thread, through any outage, until `stop`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._client = connect(session.settings, block_ms=BLOCK_MS)
        self._link = Link(self._client)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="amn-replies", daemon=True)

    @property
    def started(self) -> bool:
        """Says whether `start` was called."""
        return self._thread.ident is not None

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def stop(self, commands: redis.Redis) -> None:
        """Ends the thread and removes the reply stream, by way of another client."""
        self._stopping.set()
        if self.started:
            settings = self._session.settings
            with contextlib.suppress(ServerError), driver_errors(settings.url):
                self._wake(commands)
            self._thread.join(timeout=(BLOCK_MS + settings.command_timeout_ms) / 1000)
            with contextlib.suppress(ServerError), driver_errors(settings.url):
                # When even this fails, the stream expires by itself.
                commands.delete(self._session.cursor.stream)
        self._link.close()
        self._client.close()

    def _wake(self, commands: redis.Redis) -> None:
        """An entry without a reply ends the blocking read at once."""
        stream = self._session.cursor.stream
        with commands.pipeline(transaction=True) as pipe:
            pipe.xadd(stream, {WAKE: b""})
            pipe.pexpire(stream, 60_000)
            pipe.execute()

    def _run(self) -> None:
        watch = _Watch(self._session)
        while not self._stopping.is_set():
            try:
                self._session.cursor.take(self._round_trip())
                if watch.failing:
                    watch.over()
            except Exception as error:
                self._link.close()
                self._stopping.wait(watch.failed(error))

    def _round_trip(self) -> list[Any]:
        clock = self._session.clock
        if clock.due:
            clock.measured(clock.asks(), self._link.each([("TIME",)])[0])
        answers = self._link.each(self._session.cursor.commands())
        if isinstance(answers[-1], Exception):
            raise answers[-1]
        return answers


class ReplyTask:
    """Feeds a session's cursor from a task of the running event loop, likewise.

    Attributes:
        failed: Whether the task was cancelled, and not by `stop`; those who waited were told.
    """

    def __init__(self, session: Session) -> None:
        self.failed = False
        self._session = session
        self._client = connect_async(session.settings, block_ms=BLOCK_MS)
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    @property
    def started(self) -> bool:
        """Says whether `start` was called."""
        return self._task is not None

    def start(self) -> None:
        """Begins to read."""
        self._task = asyncio.create_task(self._run(), name="amn-replies")

    async def stop(self, commands: redis.asyncio.Redis) -> None:
        """Ends the task and removes the reply stream, by way of another client."""
        self._stopping = True
        if self._task is not None:
            while not self._task.done():
                # Again and again: the driver loses a cancellation that meets a reply.
                self._task.cancel()
                await asyncio.wait((self._task,), timeout=_CANCEL_AGAIN_S)
            with contextlib.suppress(ServerError), driver_errors(self._session.settings.url):
                await commands.delete(self._session.cursor.stream)
        await self._client.aclose()

    def let_go(self) -> None:
        """Drops the connections of an event loop that has ended."""
        let_go(self._client)

    async def _run(self) -> None:
        watch, task = _Watch(self._session), asyncio.current_task()
        try:
            # The driver loses a cancellation that meets a reply: the loop would wait for this task for ever.
            while task is not None and not task.cancelling():
                try:
                    self._session.cursor.take(await self._round_trip())
                    if watch.failing:
                        watch.over()
                except Exception as error:
                    await self._client.connection_pool.disconnect()
                    await asyncio.sleep(watch.failed(error))
        finally:
            if not self._stopping:
                self.failed = True
                self._session.close(_CANCELLED)

    async def _round_trip(self) -> list[Any]:
        clock = self._session.clock
        if clock.due:
            asked_at_s = clock.asks()
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.execute_command("TIME")
                [answer] = await pipe.execute(raise_on_error=False)
            clock.measured(asked_at_s, answer)
        async with self._client.pipeline(transaction=False) as pipe:
            for command in self._session.cursor.commands():
                pipe.execute_command(*command)
            answers = await pipe.execute(raise_on_error=False)
        if isinstance(answers[-1], Exception):
            raise answers[-1]
        return answers


class _Watch:
    """The care of both readers for a failed round trip: they never end while somebody waits."""

    failing = False

    def __init__(self, session: Session) -> None:
        self._session = session
        self._backoff, self._outage = Backoff(), Outage("reply_reader")

    def over(self) -> None:
        """Notes a success after failures."""
        self.failing = False
        self._outage.over()
        self._backoff.reset()

    def failed(self, error: Exception) -> float:
        """Notes a failure, whatever it was; returns the seconds to wait before the next try."""
        self.failing = True
        self._session.cursor.failed(error)
        driver = isinstance(error, DRIVER_ERRORS)
        self._outage.failed(translated(error, self._session.settings.url) if driver else error)
        return self._backoff.next_ms() / 1000
