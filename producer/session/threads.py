"""The I/O of a synchronous producer with the server of one queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from redis.exceptions import RedisError

from producer.errors import ServerUnavailable, WireError
from producer.session.channel import Channel, checked_statuses
from producer.session.handle import BaseHandle, Lead
from producer.session.replies import BLOCK_MS, Reader, ReplyCursor
from producer.session.requests import Outgoing
from producer.settings import ProducerSettings
from producer.transport.connection import DRIVER_ERRORS, LOST, connect
from producer.transport.link import Link, Word, written
from producer.transport.verbs import Verb, run

#: The reply thread looks after the connections so often while callers read for themselves.
_REST_S = 5.0
#: A caller has its turn for so long: for a blocking read, and a little more.
_TURN_S = BLOCK_MS / 1000 + 0.25
#: The connection of submits has so long to answer a PING.
_KEEP_S = 0.1
#: Errors that the reply thread deals with; all others are the caller's. The driver wraps those of its socket,
#: so that an OSError is one of a signal handler.
_PASSING = (RedisError, ServerUnavailable)


class ThreadChannel(Channel):
    """One connection for the submits of one thread at a time, a pool for the rest, and a reply reader."""

    def __init__(self, settings: ProducerSettings) -> None:
        super().__init__(settings)
        self._commands = connect(settings)
        self.execute = self._commands.execute_command
        self._link, self._link_lock = Link(self._commands), threading.Lock()
        self._head = written(7, *self.submit_head())
        self._start_lock, self.reader = threading.RLock(), ReplyThread(self)

    def starting(self) -> Verb[None]:
        """Does what it says of every channel, once; a signal handler starts it in place of the call below."""
        self.check_open()  # in the child of a fork nobody may ever release the lock
        with self._start_lock:
            yield from super().starting()

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

    def keep(self) -> None:
        """Uses the connection of submits, which would else rest until a burst of them finds it dead."""
        if self._link_lock.acquire(blocking=False):
            try:
                with suppress(*DRIVER_ERRORS):
                    self._link.send([("PING",)])
                    if self._link.ready(_KEEP_S):
                        self._link.read(1)
                if self._link.due:
                    self._link.close()
            finally:
                self._link_lock.release()

    def disconnect(self) -> None:
        """Closes the connections."""
        self._link.close()
        self._commands.close()


class ReplyThread(Reader):
    """The reply reader of a daemon thread, or of the caller who waits for the only request in flight.

    A caller who reads for itself is not woken by another thread, and sends its request together with the read
    of the answer. It claims the turn while the thread rests, and has it for one exchange: what that does not
    bring is the thread's to read. A signal may interrupt a caller anywhere, and its handler may use this
    producer, or stand still. So a turn ends in one call, which may be repeated; a call that finds one below
    itself in its thread ends that; and the thread takes a turn that was not left in time.
    """

    def __init__(self, channel: ThreadChannel) -> None:
        super().__init__(channel.settings.url, channel.clock, channel.cursor)
        self._client = connect(channel.settings, block_ms=BLOCK_MS)
        self._inflight, self._link = channel.inflight, Link(self._client)
        self._keep, self._stop = channel.keep, threading.Event()
        self.pause, self.stopping = self._stop.wait, self._stop.is_set
        self.each, self.drop = lambda commands: self._link.each(commands), lambda: self._link.close()
        self._limit_s = (BLOCK_MS + channel.settings.command_timeout_ms) / 1000
        #: Owned by who reads. It knows its owner, so that nobody can leave for another.
        self._turn: Any = threading.RLock()
        self._bell, self._began = threading.Lock(), threading.Lock()
        #: Whether a turn may be claimed, and the request that its owner waits for.
        self._resting, self._led = False, ""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to read, once: after a signal that came between, it may be called again."""
        threading.Thread(target=self._run, name="amn-replies", daemon=True).start()

    def _run(self) -> None:
        if self._began.acquire(blocking=False):
            self._thread = threading.current_thread()
            self._turn.acquire()
            run(self.reading())

    def stop(self) -> None:
        """Ends the thread, and a blocking read at once."""
        self._stop.set()
        self.interrupt()
        self._ring()
        self._link.hang_up()
        if self._thread is not None:
            self._thread.join(self._limit_s)
        self._link.close()
        self._client.close()

    def exchange(self) -> list[Any]:
        """The answers to the cursor's next commands, or to those that a caller sent and left."""
        if not self._link.due:
            self._link.send(self._cursor.commands(bool(self._inflight.handles) or not self.claimed))
        return self._link.read(self._link.due)

    def rest(self) -> None:
        """Lets callers read, until some answer is read by none of them, or for a while."""
        self._bell.acquire(blocking=False)
        self._resting = True  # who asks from now on sees that
        if not self._inflight.handles and not self.stopping():
            self._turn.release()
            try:
                self.claimed = not self._bell.acquire(timeout=_REST_S)
                if self.claimed:
                    self._keep()
            finally:
                self._resting = False
                while not self._turn.acquire(timeout=_TURN_S):
                    # Its owner was interrupted while it left, or stands still: it finds itself without it.
                    self._turn = threading.RLock()
                    self._renew()
        self._resting = False

    def _renew(self) -> None:
        """Ends the turn of a call that may go on: it keeps its connection, cut, and its cursor."""
        self._link.hang_up()
        self._link, self._cursor, self._led = Link(self._client), self._cursor.anew(), ""

    def _ring(self) -> None:
        self._resting = False
        with suppress(RuntimeError):  # it rings already
            self._bell.release()

    def claim(self) -> Lead | None:
        """Takes the turn for the calling thread; None where the reply thread reads, or is to."""
        if self._turn._is_owned():
            self.interrupt()
        if self._resting and not self._inflight.handles and self._turn.acquire(blocking=False):
            return partial(self.lead, self._link, self._cursor)
        self.claimed = True
        return None

    def leave(self) -> None:
        """Ends the turn of the calling thread, if it has it, and calls the reply thread to what is left."""
        turn = self._turn
        if turn._is_owned():
            if self._inflight.handles or self._link.due:
                self._ring()  # before the turn is free: the next claim would cut what is due
            with suppress(RuntimeError):  # a signal handler came between, and has ended it
                turn.release()

    def abandon(self, lead: Any = None) -> None:
        """Ends the turn of a call that failed, if it has it: nobody knows which answers it read. One that
        lost its turn meanwhile gives the connection back that `claim` gave it with its `lead`."""
        if self._turn._is_owned():
            self._led = ""
            if self._link.due:
                self._link.close()
            self.leave()
        elif lead is not None and lead.args[0] is not self._link:
            lead.args[0].close()

    def interrupt(self) -> None:
        """Ends the turn of a call below this one in the same thread, which closes its connection itself."""
        if self._turn._is_owned():
            self._renew()
            self.leave()

    def wake(self, request_id: str) -> None:
        """Ends the wait of the caller who reads for this request, which somebody else has ended."""
        if self._led == request_id:
            self._link.hang_up()

    def sent(self, command: tuple[Word, ...]) -> list[int]:
        """Sends a submit together with the next read, where the calling thread reads; returns its statuses,
        or none where it is to be sent otherwise."""
        link, cursor, answer = self._link, self._cursor, None
        if not self._turn._is_owned():
            if self._resting:
                self._ring()
            return []
        try:
            link.send([command, *cursor.commands()])
            [answer] = link.read(1) if link.ready(self._limit_s) else [None]
        except _PASSING as error:
            self._failed(link, cursor, error)
        if answer != [1]:
            (self.leave if answer else self.abandon)()  # what comes of it may take long
        return answer if isinstance(answer, list) else []

    def lead(self, link: Link, cursor: ReplyCursor, handle: BaseHandle, limit_s: float) -> float:
        """Reads once for this request, where the calling thread has the turn; returns the seconds left."""
        until_s = time.monotonic() + limit_s
        if link is self._link and self._turn._is_owned() and link.due:
            self._led, answers, left_s = handle.id, list[Any](), limit_s
            # Each by itself: a deletion that went along is answered before the read begins to wait.
            while link.due and handle.id in self._inflight.handles and link.ready(min(left_s, _TURN_S)):
                left_s = max(until_s - time.monotonic(), 0.0)
                try:
                    answers += link.read(1)
                    if not link.due and len(self._inflight.handles) == 1 and self._turn._is_owned():
                        cursor.take(answers, own=True)  # they are its own
                except (*_PASSING, WireError) as error:
                    self._failed(link, cursor, error)
            self._led = ""
        if link is not self._link:
            link.close()
        self.leave()
        return max(until_s - time.monotonic(), 0.0)

    def _failed(self, link: Link, cursor: ReplyCursor, error: Exception) -> None:
        """Leaves it to the thread to try again, and to say what is wrong."""
        cursor.failed(error)
        link.close()
