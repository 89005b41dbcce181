"""The I/O of a synchronous producer with the server of one queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from threading import get_ident
from typing import Any

from producer.errors import ServerUnavailable
from producer.keys import WAKE
from producer.session.channel import Channel, checked_statuses
from producer.session.handle import BaseHandle, Lead
from producer.session.replies import BLOCK_MS, Reader
from producer.session.requests import Outgoing
from producer.settings import ProducerSettings
from producer.transport.connection import DRIVER_ERRORS, LOST, connect
from producer.transport.link import Link, Word, written
from producer.transport.verbs import run

#: The reply thread looks after the connection so often while callers read for themselves.
_REST_S = 5.0


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
        words = [self._head, *(word for item in requests for word in item[:4])]
        return self.reader.sent((self.submit_script.by_hash, *words)) or self._sent(words, requests)

    def _sent(self, words: Sequence[Word], requests: Sequence[Outgoing]) -> list[int]:
        if not self._link_lock.acquire(blocking=False):
            # Another thread is using the link: take a connection of the pool.
            found = run(self.submit_script.running(self.execute, *self.submit_call(requests)))
            return checked_statuses(found, len(requests))
        try:
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
    """The reply reader of a daemon thread, or of the caller who waits for the only request in flight.

    A caller who reads for itself is not woken by another thread, and sends its request together with the read
    of the answer. It claims the reading, and has it while the thread rests: from when somebody claimed it and
    nothing is in flight, until the thread is called to answers that nobody else reads.
    """

    def __init__(self, channel: ThreadChannel) -> None:
        super().__init__(channel.settings.url, channel.clock, channel.cursor)
        self._client = connect(channel.settings, block_ms=BLOCK_MS)
        self._inflight, self._link = channel.inflight, Link(self._client)
        self.each, self.drop = self._link.each, self._link.close
        self._stop = threading.Event()
        self.pause, self.stopping = self._stop.wait, self._stop.is_set
        self._limit_s = (BLOCK_MS + channel.settings.command_timeout_ms) / 1000
        #: Held by who reads, and until the thread is called.
        self._turn, self._bell = threading.Lock(), threading.Lock()
        self._bell.acquire()
        self._resting, self._called, self._leader = False, True, 0
        self._thread = threading.Thread(target=self._run, name="amn-replies", daemon=True)

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def _run(self) -> None:
        with self._turn:
            run(self.reading())

    def stop(self) -> None:
        """Ends the thread, and a blocking read at once, by an entry without a reply."""
        self._stop.set()
        self._ring()
        if self._thread.ident is not None:
            with suppress(*DRIVER_ERRORS), self._client.pipeline() as pipe:
                pipe.xadd(self._cursor.stream, {WAKE: b""})
                pipe.pexpire(self._cursor.stream, 60_000)
                pipe.execute()
            self._thread.join(self._limit_s)
        self._link.close()
        self._client.close()

    def exchange(self) -> list[Any]:
        """The answers to the cursor's next commands, or to those that were sent already."""
        if not self._link.due:
            self._link.send(self._cursor.commands())
        return self._link.read(self._link.due)

    def rest(self) -> None:
        """Lets callers read, until some answer is read by none of them, or for a while."""
        self.claimed, self._resting, self._called = False, True, False
        if not self._inflight.handles:  # who registers a request from now on sees that this thread rests
            self._turn.release()
            self._bell.acquire(timeout=_REST_S)
            self._called = True
            self._turn.acquire()
        self._resting = self._called = False

    def _ring(self) -> None:
        with suppress(RuntimeError):  # it rings already
            self._bell.release()

    def claim(self) -> Lead | None:
        """Takes the reading over for the calling thread, which is to `leave` it; None if another has it."""
        if self._called or not self._turn.acquire(blocking=False):
            self.claimed = True
            return None
        self._leader = get_ident()
        return self.lead

    def leave(self) -> None:
        """Ends the reading of the calling thread, if it has it, and calls the thread to what is left."""
        if self._leader == get_ident():
            # Before the turn is free: the next claim would cut the connection under an answer that is due.
            self._leader, self._called = 0, bool(self._inflight.handles or self._link.due)
            self._turn.release()
            if self._called:
                self._ring()

    def sent(self, command: tuple[Word, ...]) -> list[int]:
        """Sends a submit together with the next read, where the calling thread reads; returns its statuses,
        or none where it is to be sent otherwise."""
        if self._leader != get_ident():
            if self._resting:
                self._ring()
            return []
        answer: Any = None
        try:
            self._link.send([command, *self._cursor.commands()])
            [answer] = self._link.read(1)
        except BaseException as error:
            self._failed(error)
        if answer != [1]:
            self.leave()  # what comes of it may take long
        return answer if isinstance(answer, list) else []

    def lead(self, handle: BaseHandle, limit_s: float) -> float:
        """Reads, where the calling thread does, until this request has its final answer, or that many seconds
        are over; returns what is left of them."""
        until_s = time.monotonic() + limit_s
        try:
            while self._leader == get_ident() and handle.latency_ms is None and not self.stopping():
                left_s = max(until_s - time.monotonic(), 0.0)
                if not self._link.due:
                    self._link.send(self._cursor.commands())
                if left_s < self._limit_s and not (left_s and self._link.ready(left_s)):
                    break
                self._cursor.take(self.exchange())
        except BaseException as error:
            self._failed(error)
        self.leave()
        return max(until_s - time.monotonic(), 0.0)

    def _failed(self, error: BaseException) -> None:
        """Leaves it to the thread to try again, and to say what is wrong; an interrupt goes on."""
        self._cursor.failed(error)
        self.drop()
        if not isinstance(error, Exception):
            self.leave()
            raise error
