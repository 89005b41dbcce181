"""The I/O of a synchronous producer with the server of one queue."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress

from producer.errors import ServerUnavailable
from producer.keys import WAKE
from producer.session.channel import Channel, checked_statuses
from producer.session.replies import BLOCK_MS, Reader
from producer.session.requests import Outgoing
from producer.settings import ProducerSettings
from producer.transport.connection import DRIVER_ERRORS, LOST, connect
from producer.transport.link import Link, written
from producer.transport.verbs import run


class ThreadChannel(Channel):
    """One connection for the submits of one thread at a time, a pool for the rest, and a reply reader."""

    def __init__(self, settings: ProducerSettings) -> None:
        super().__init__(settings)
        self._commands = connect(settings)
        self.execute = self._commands.execute_command
        self._link, self._link_lock = Link(self._commands), threading.Lock()
        self._head = written(7, *self.submit_head())
        self.start_lock, self.reader = threading.Lock(), ReplyThread(self)

    def send(self, requests: Sequence[Outgoing]) -> list[int]:
        """Runs lua/submit.lua; gives its statuses."""
        if not self._link_lock.acquire(blocking=False):
            # Another thread is using the link: take a connection of the pool.
            found = run(self.submit_script.running(self.execute, *self.submit_call(requests)))
            return checked_statuses(found, len(requests))
        try:
            words = [self._head, *(word for item in requests for word in item[:4])]
            try:
                found = self._link.run_words(self.submit_script, words)
            except LOST:  # a connection that broke while idle is noticed only by the next command on it
                self.check_open()  # it may have been closed meanwhile
                found = self._link.run_words(self.submit_script, words)
            return checked_statuses(found, len(requests))
        except ServerUnavailable:
            self._link.close()  # what comes next on it may be the answer to this call
            raise
        finally:
            self._link_lock.release()

    def disconnect(self) -> None:
        """Closes the connections."""
        self._link.close()
        self._commands.close()


class ReplyThread(Reader):
    """The reply reader of a daemon thread."""

    def __init__(self, channel: ThreadChannel) -> None:
        super().__init__(channel.settings.url, channel.clock, channel.cursor)
        self._client = connect(channel.settings, block_ms=BLOCK_MS)
        self._link = Link(self._client)
        self.each, self.drop = self._link.each, self._link.close
        self._stop = threading.Event()
        self.pause, self.stopping = self._stop.wait, self._stop.is_set
        self._limit_s = (BLOCK_MS + channel.settings.command_timeout_ms) / 1000
        self._thread = threading.Thread(target=run, args=(self.reading(),), name="amn-replies", daemon=True)

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, and its blocking read at once, by an entry without a reply."""
        self._stop.set()
        if self._thread.ident is not None:
            with suppress(*DRIVER_ERRORS), self._client.pipeline() as pipe:
                pipe.xadd(self._cursor.stream, {WAKE: b""})
                pipe.pexpire(self._cursor.stream, 60_000)
                pipe.execute()
            self._thread.join(self._limit_s)
        self._link.close()
        self._client.close()
