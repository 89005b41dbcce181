"""One producer's part of one queue: its identity, its requests in flight, and the order of what it does."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from redis.exceptions import RedisError

from producer import errors
from producer.keys import GROUP, Keys
from producer.protocol import wire
from producer.protocol.checks import checked_vector
from producer.sampling import RATE_MAX, sampled
from producer.session.handle import BaseHandle
from producer.session.inflight import REMEMBERED_MAX, Inflight
from producer.session.outage import Outage
from producer.session.replies import ReplyCursor
from producer.session.requests import Outgoing, new_id
from producer.session.submission import Submission
from producer.session.times import AnswerTimes
from producer.settings import ProducerSettings
from producer.transport import forks
from producer.transport.clock import ServerClock
from producer.transport.connection import driver_errors, script_text, translated
from producer.transport.link import Script
from producer.transport.verbs import Verb

SHADOW_ENTRIES_MAX = 20_000
CLOSED = "this producer was closed; make a new one"
FORKED = "this producer was made before a fork; make one in each process"


class Channel:
    """The state and the verbs of one producer with one queue.

    A subclass, for threads, for an event loop or for tests, brings the I/O: `execute` sends one command,
    `send` runs lua/submit.lua on requests and gives its statuses; both raise the driver's errors.
    `disconnect` closes the connections.

    Attributes:
        note: The mark that the server keeps of this client beside the ids that it enqueued.
        started: True once `starting` has ended.
        closed: The reason why nothing may be sent from here any more; "" while it may.
    """

    execute: Callable[..., Any]
    send: Callable[[Sequence[Outgoing]], Any]
    disconnect: Callable[[], Any]
    reader: Any = None

    def __init__(self, settings: ProducerSettings) -> None:
        self.settings = settings
        self.client_id = f"{settings.client}.{new_id()}" if settings.client else new_id()
        self.keys = keys = Keys(settings.queue)
        # Every producer may read who noted an id, and must not learn there whom to answer in our name.
        self.note = blake2b(self.client_id.encode(), digest_size=16).hexdigest()
        self.clock = ServerClock()
        self.inflight = Inflight(settings.in_flight_max, settings.seen_window_ms)
        if settings.stages:
            self.inflight.times = AnswerTimes(self.clock)
        self.cursor = ReplyCursor(keys, self.client_id, self.inflight)
        self.started, self.closed = False, ""
        self.submit_script = Script(script_text("producer", "submit"))
        self._cancel_script = Script(script_text("producer", "cancel"))
        self._outage = Outage("submit")
        self._sample_keys: OrderedDict[str, str] = OrderedDict()
        forks.tell(self)

    @property
    def elsewhere(self) -> bool:
        """True in the child of a fork: no reply reader runs here, and nothing is ours to end."""
        return self.closed == FORKED

    def check_open(self) -> None:
        """Raises ProducerClosed when nothing may be sent from here."""
        if self.closed:
            raise errors.ProducerClosed(self.closed)

    def forked(self) -> None:
        """In the child of a fork: tells whoever waits there."""
        self.closed = FORKED
        self.inflight.forked(FORKED)

    def submit_head(self) -> list[Any]:
        """The keys and the first arguments of lua/submit.lua."""
        keys, settings = self.keys, self.settings
        limits = settings.entries_max, settings.bytes_max, settings.seen_window_ms
        return [*keys.levels, *keys.counters[:3], keys.stats, *limits, keys.seen_prefix, self.note]

    def submit_call(self, requests: Sequence[Outgoing]) -> tuple[list[str], list[Any]]:
        """Keys and arguments of lua/submit.lua."""
        head = self.submit_head()
        return head[:7], [*head[7:], *(word for item in requests for word in item[:4])]

    def cancel_call(self, request_id: str) -> tuple[list[str], list[Any]]:
        """Keys and arguments of lua/cancel.lua."""
        keys = self.keys
        return [*keys.places, *keys.counters, keys.seen(request_id), keys.stats], [self.note, GROUP]

    def starting(self) -> Verb[None]:
        """Checks the server, measures its clock, and starts the reply reader."""
        self.check_open()
        if self.started:
            return
        with driver_errors(self.settings.url):
            with suppress(errors.AuthenticationFailed), driver_errors(self.settings.url):
                # A user may be without this right, and works nevertheless.
                while self.clock.due:
                    asked_at_s = self.clock.asks()
                    self.clock.measured(asked_at_s, (yield self.execute, "TIME"))
            # One read of what is to be read from now on: says more than that somebody is there.
            yield self.execute, "XREAD", "COUNT", 1, "STREAMS", self.cursor.stream, "0-0"
        self.check_open()
        if not self.started:  # a signal handler may have started it meanwhile
            self.reader.start()
        self.started = True

    def measuring(self) -> Verb[None]:
        """Starts, so that the first request too is stamped by the server's clock; an outage shows later."""
        if not self.clock.known:
            with suppress(errors.ServerError):
                yield from self.starting()

    def submitting(
        self,
        outgoing: Sequence[Outgoing],
        make_handle: Callable[[Outgoing], BaseHandle],
        block: bool,
        pause: Callable[[float], Any],
    ) -> Verb[list[Any]]:
        """Takes requests into the queue, through refusals and outages; gives their handles."""
        parts = self.inflight, self.settings, make_handle, self._outage
        submission = Submission(outgoing, *parts, block=block)
        # For a truth that is reported by the id alone.
        self._sample_keys.update((one.id, one.sample_key) for one in outgoing if one.sample_key != one.id)
        while len(self._sample_keys) > REMEMBERED_MAX:
            self._sample_keys.popitem(last=False)
        try:
            while submission.left:
                try:
                    if self.closed or not self.started:
                        yield from self.starting()
                    requests = submission.next_requests()
                    pause_ms = submission.landed((yield self.send, requests) if requests else ())
                except errors.ServerError as error:
                    pause_ms = submission.failed(error)
                except RedisError as error:  # not an OSError, which a signal handler may raise
                    pause_ms = submission.failed(translated(error, self.settings.url))
                if pause_ms:
                    yield pause, pause_ms / 1000
        except BaseException as error:
            submission.give_up(error)
            raise
        return submission.handles

    def closing(self) -> Verb[None]:
        """Stops the reader, tells those who wait, and closes the connections."""
        if self.closed == CLOSED:
            return
        self.closed = CLOSED
        try:
            yield (self.reader.stop,)
        finally:  # nobody closes again, when something interrupted this
            self.inflight.close(CLOSED)
        if self.started:
            with suppress(errors.ServerError), driver_errors(self.settings.url):
                # If even this fails, the stream expires by itself.
                yield self.execute, "DEL", self.cursor.stream
        yield (self.disconnect,)

    def cancelling(self, request_id: str) -> Verb[bool]:
        """Takes a request back; gives whether that was in time."""
        call = self._cancel_script.running, self.execute, *self.cancel_call(request_id)
        if (yield from self._twice(*call)) != 1:
            return False
        self.inflight.settle(request_id, errors.Cancelled(f"request {request_id} was cancelled"))
        self.reader.wake(request_id)  # a caller may read for it
        return True

    def reporting(self, request_id: str, key: str, vector: Any) -> Verb[bool]:
        """Sends a true vector; gives whether it may belong to a sample, by its key, if that is known."""
        self.check_open()
        array = checked_vector(vector)
        key = key or self._sample_keys.get(request_id, request_id)
        if not sampled(key, RATE_MAX, self.settings.sample_salt):
            return False
        yield from self._twice(_once, self.execute, *truth_command(self.keys, key, array))
        return True

    def _twice(self, verb: Callable[..., Verb[Any]], *arguments: Any) -> Verb[Any]:
        """Runs a verb; again, when a connection broke: one that broke while idle is noticed only then."""
        for last in (False, True):
            self.check_open()
            try:
                with driver_errors(self.settings.url):
                    return (yield from verb(*arguments))
            except errors.ServerUnavailable:
                if last:
                    raise
        return None


def truth_command(keys: Keys, key: str, vector: NDArray[np.floating]) -> tuple[Any, ...]:
    """The words that report a true vector (768,) under the key of a sample."""
    entry = "kind", "truth", "key", key, "vector", wire.encode_vector(vector)
    return "XADD", keys.truths, "MAXLEN", "~", SHADOW_ENTRIES_MAX, "*", *entry


def _once(*step: Any) -> Verb[Any]:
    return (yield step)


def checked_statuses(found: Any, count: int) -> list[int]:
    """The statuses of so many requests; an answer to something else is refused, and a repeat is safe."""
    if isinstance(found, list) and len(found) == count and all(type(status) is int for status in found):
        return found
    error = errors.ServerUnavailable("the server's answers came out of step; the connection is opened anew")
    error.maybe_done = True
    raise error
