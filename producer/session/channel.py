"""The I/O of a synchronous producer with the server of one queue."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from producer.errors import AuthenticationFailed, ServerUnavailable
from producer.session.handle import BaseHandle
from producer.session.pending import ThreadFuture
from producer.session.readers import ReplyThread
from producer.session.requests import Outgoing
from producer.session.session import Session, checked_statuses
from producer.session.verbs import T, Verb
from producer.settings import ProducerSettings
from producer.transport.connection import DRIVER_ERRORS, connect, driver_errors, script_text, translated
from producer.transport.link import Link, Script

SHADOW_ENTRIES_MAX = 20_000


def run(verb: Verb[T]) -> T:
    """Runs a verb: calls each of its steps, and gives it the result or the error."""
    try:
        step = next(verb)
        while True:
            try:
                found = step[0](*step[1:])
            except BaseException as error:
                step = verb.throw(error)
            else:
                step = verb.send(found)
    except StopIteration as ended:
        result: T = ended.value
        return result


def together(verbs: Sequence[Verb[Any]]) -> list[Any]:
    """Runs verbs one after another; the result or the error of each."""
    outcomes: list[Any] = []
    for verb in verbs:
        try:
            outcomes.append(run(verb))
        except Exception as error:
            outcomes.append(error)
    return outcomes


class Channel:
    """One connection for the submits of one thread at a time, a pool for the rest, and a reply reader."""

    def __init__(self, settings: ProducerSettings) -> None:
        self.session = Session(settings, ThreadFuture)
        self.started = False
        self._url = settings.url
        self._commands = connect(settings)
        self._reader = ReplyThread(self.session)
        self._submit_script = Script(script_text("producer", "submit"))
        self._submit = self._submit_script.on(self._commands)
        self._cancel = Script(script_text("producer", "cancel")).on(self._commands)
        self._link, self._link_lock = Link(self._commands), threading.Lock()
        self._closed = False
        self._start_lock = threading.Lock()

    def check_open(self) -> None:
        """Refuses to work when closed, or in a forked child."""
        self.session.check_open(self._closed)

    def start(self) -> None:
        """Checks the server, measures its clock, and starts the reply reader."""
        self.check_open()
        if self.started:
            return
        with self._start_lock:
            self.check_open()
            if self.started:
                return
            with driver_errors(self._url):
                clock = self.session.clock
                asked_at_s = clock.asks()
                with suppress(AuthenticationFailed), driver_errors(self._url):
                    # A user may be without this right, and works nevertheless.
                    clock.measured(asked_at_s, self._commands.time())
                # One read of what is to be read from now on: says more than that somebody is there.
                self._commands.xread({self.session.cursor.stream: "0-0"}, count=1)
            self._reader.start()
            self.started = True

    def send(self, requests: Sequence[Outgoing]) -> list[int]:
        """Runs lua/submit.lua; gives its statuses."""
        if not self._link_lock.acquire(blocking=False):
            # Another thread is using the link: take a connection of the pool.
            with driver_errors(self._url):
                return checked_statuses(self._submit(*self.session.submit_call(requests)), len(requests))
        try:
            words = self.session.submit_words(requests)
            try:
                found = self._link.run_words(self._submit_script, words)
            except DRIVER_ERRORS as error:
                found = self._send_again(words, error)
            return checked_statuses(found, len(requests))
        except ServerUnavailable:
            self._link.close()  # what comes next on it may be the answer to this call
            raise
        finally:
            self._link_lock.release()

    def _send_again(self, words: list[Any], error: Exception) -> Any:
        """A connection that broke while idle is noticed only by the next command on it."""
        ours = translated(error, self._url)
        if not isinstance(ours, ServerUnavailable):
            raise ours from error
        self.check_open()  # it may have been closed meanwhile
        with driver_errors(self._url):
            return self._link.run_words(self._submit_script, words)

    def cancel(self, request_id: str) -> Any:
        """Runs lua/cancel.lua; gives what it returns."""
        with driver_errors(self._url):
            return self._cancel(*self.session.cancel_call(request_id))

    def report(self, request: BaseHandle | str, vector: Any) -> bool:
        """Sends a true vector; gives whether it may belong to a sample."""
        entry: Any = self.session.truth_entry(request, vector)
        if entry is not None:
            with driver_errors(self._url):
                truths = self.session.keys.truths
                self._commands.xadd(truths, entry, maxlen=SHADOW_ENTRIES_MAX, approximate=True)
        return entry is not None

    def close(self) -> None:
        """Stops the reader and closes the connections; in the child of a fork there are none."""
        if self.session.elsewhere:
            return
        with self._start_lock:
            if self._closed:
                return
            self._closed = True
        self._reader.stop(self._commands)
        self.session.close("the producer was closed before the answer came")
        self._link.close()
        self._commands.close()
