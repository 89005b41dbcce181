"""The reply readers: one connection each that waits for answers, as a thread or as a task."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from typing import Any

import redis

from producer.connection import DRIVER_ERRORS, connect, connect_async, driver_errors, translated
from producer.errors import ServerError
from producer.keys import WAKE
from producer.link import Link
from producer.outage import Backoff, Outage
from producer.replies import BLOCK_MS
from producer.session import Session

_LOG = logging.getLogger("amn.producer")
_CANCEL_AGAIN_S = 0.05
_BROKEN = "the reply reader failed, see the log"


class ReplyThread:
    """Feeds a session's cursor from a daemon thread, through any outage, until `stop`.

    Attributes:
        failed: Whether the thread ended by a bug; those who waited were told.
    """

    def __init__(self, session: Session) -> None:
        self.failed = False
        self._session = session
        self._client = connect(session.settings, block_ms=BLOCK_MS)
        self._link = Link(self._client)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="amn-replies", daemon=True)

    @property
    def started(self) -> bool:
        """Whether `start` was called."""
        return self._thread.ident is not None

    @property
    def reading(self) -> bool:
        """Whether it was started, and has not failed."""
        return self.started and not self.failed

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
        cursor, backoff, outage = self._session.cursor, Backoff(), Outage("reply_reader")
        try:
            while not self._stopping.is_set():
                try:
                    found = self._round_trip()
                except ServerError as error:
                    outage.failed(error)
                    self._stopping.wait(backoff.next_ms() / 1000)
                    continue
                outage.over()
                backoff.reset()
                cursor.take(found)
        except Exception:
            _LOG.exception("reply_reader_failed")
            self.failed = True
            self._session.close(_BROKEN)

    def _round_trip(self) -> Any:
        clock = self._session.clock
        try:
            if clock.due:
                clock.measured(clock.asks(), self._link.each([("TIME",)])[0])
            return self._link.together(self._session.cursor.commands())
        except DRIVER_ERRORS as error:
            raise translated(error, self._session.settings.url) from error


class ReplyTask:
    """The same as a task of the running event loop."""

    def __init__(self, session: Session) -> None:
        self.failed = False
        self._session = session
        self._client = connect_async(session.settings, block_ms=BLOCK_MS)
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    @property
    def started(self) -> bool:
        """Whether `start` was called."""
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

    async def _run(self) -> None:
        cursor, backoff, outage = self._session.cursor, Backoff(), Outage("reply_reader")
        try:
            while not self._stopping:
                try:
                    found = await self._round_trip()
                except ServerError as error:
                    outage.failed(error)
                    await asyncio.sleep(backoff.next_ms() / 1000)
                    continue
                outage.over()
                backoff.reset()
                cursor.take(found)
        except Exception:
            _LOG.exception("reply_reader_failed")
            self.failed = True
            self._session.close(_BROKEN)

    async def _round_trip(self) -> Any:
        clock = self._session.clock
        with driver_errors(self._session.settings.url):
            if clock.due:
                asked_at_s = clock.asks()
                async with self._client.pipeline(transaction=False) as pipe:
                    pipe.execute_command("TIME")
                    [answer] = await pipe.execute(raise_on_error=False)
                clock.measured(asked_at_s, answer)
            async with self._client.pipeline(transaction=False) as pipe:
                for command in self._session.cursor.commands():
                    pipe.execute_command(*command)
                return (await pipe.execute())[-1]
