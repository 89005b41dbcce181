"""The state of one producer with one server, without I/O: identity, limits and requests in flight."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any

from producer.errors import ProducerClosed, QueueError, ServerUnavailable
from producer.keys import GROUP, Keys
from producer.options import Options
from producer.protocol import wire
from producer.protocol.checks import checked_vector
from producer.sampling import RATE_MAX, sampled
from producer.session.handle import BaseHandle
from producer.session.inflight import FORKED, REMEMBERED_MAX, Inflight
from producer.session.outage import Outage
from producer.session.pending import FutureLike, Pending, forked
from producer.session.replies import ReplyCursor
from producer.session.requests import Outgoing, new_id, prepare, prepare_all, prepare_batch
from producer.session.submission import Submission
from producer.settings import ProducerSettings
from producer.transport import forks
from producer.transport.clock import ServerClock
from producer.transport.packing import written


class Session:
    """One producer's identity with one queue, its limits and its requests in flight."""

    def __init__(self, settings: ProducerSettings, make_future: Callable[[], FutureLike]) -> None:
        self.settings = settings
        self.client_id = f"{settings.client}.{new_id()}" if settings.client else new_id()
        self.keys = keys = Keys(settings.queue)
        # Every producer may read who noted an id, and must not learn there whom to answer in our name.
        self.note = blake2b(self.client_id.encode(), digest_size=16).hexdigest()
        self._submit_keys = [*keys.levels, *keys.counters[:3], keys.stats]
        limits = settings.entries_max, settings.bytes_max, settings.seen_window_ms
        self._limits = *limits, keys.seen_prefix
        self._submit_words = written(len(self._submit_keys), *self._submit_keys, *self._limits, self.note)
        self.clock = ServerClock()
        self.inflight = Inflight(settings.in_flight_max, settings.seen_window_ms)
        self.cursor = ReplyCursor(keys, self.client_id, self.inflight)
        self._make_future = make_future
        self._outage = Outage("submit")
        self._sample_keys: OrderedDict[str, str] = OrderedDict()
        self._process_id = os.getpid()
        forks.tell(self)

    @property
    def elsewhere(self) -> bool:
        """Says whether this is the child of a fork: no reply reader runs here, and nothing is ours to end."""
        return os.getpid() != self._process_id

    def check_open(self, closed: bool) -> None:
        """Refuses to work in a forked child, and after `close`.

        Raises:
            ProducerClosed: It says which.
        """
        if os.getpid() != self._process_id:
            raise ProducerClosed(FORKED)
        if closed:
            raise ProducerClosed("this producer is closed; make a new one")

    def forked(self) -> None:
        """In a child: tells whoever waits there. Threads that are gone may have held these locks."""
        forked()
        self.inflight.forked()

    def prepare_all(self, contexts: Sequence[Any], options: Sequence[Options] | Options) -> list[Outgoing]:
        """Checks and encodes; the first wrong one refuses all.

        Raises:
            InvalidRequest, DeadlineExceeded: See `requests.prepare`.
        """
        now_ms = self.clock.now_ms()
        if isinstance(options, Options):
            return prepare_all(contexts, options, self.client_id, self.settings, now_ms)
        pairs = zip(contexts, options, strict=True)
        return [prepare(context, option, self.client_id, self.settings, now_ms) for context, option in pairs]

    def prepare_batch(self, contexts: Any, options: Options) -> Outgoing:
        """Checks and encodes a batch; errors as `requests.prepare_batch`."""
        return prepare_batch(contexts, options, self.client_id, self.settings, self.clock.now_ms())

    def prepare_each(
        self, numbered: Iterable[tuple[int, Any]], options: Options
    ) -> tuple[list[int], list[Outgoing], list[tuple[int, QueueError]]]:
        """Checks and encodes; returns the indices and requests that hold, and the others' errors."""
        indices, outgoing, refused = [], [], []
        now_ms = self.clock.now_ms()
        for index, context in numbered:
            try:
                outgoing.append(prepare(context, options, self.client_id, self.settings, now_ms))
                indices.append(index)
            except QueueError as error:
                refused.append((index, error))
        return indices, outgoing, refused

    def submission(self, outgoing: Sequence[Outgoing], *, block: bool) -> Submission:
        """Starts taking these requests into the queue."""
        for item in outgoing:
            if item.sample_key != item.id:
                self._sample_keys[item.id] = item.sample_key
                if len(self._sample_keys) > REMEMBERED_MAX:
                    self._sample_keys.popitem(last=False)
        return Submission(
            outgoing, self.inflight, self.settings, self._make_future, self._outage, block=block
        )

    def submit_words(self, requests: Sequence[Outgoing]) -> list[Any]:
        """Keys and arguments of lua/submit.lua for a link, which takes those of each call ready written."""
        words: list[Any] = [self._submit_words]
        for item in requests:
            words += (item.id, item.level, item.call, item.payload)
        return words

    def submit_call(self, requests: Sequence[Outgoing]) -> tuple[list[str], list[Any]]:
        """Keys and arguments of lua/submit.lua for the driver."""
        return self._submit_keys, [*self._limits, self.note, *self.submit_words(requests)[1:]]

    def cancel_call(self, request_id: str) -> tuple[list[str], list[Any]]:
        """Keys and arguments of lua/cancel.lua."""
        keys = self.keys
        names = [*keys.places, *keys.counters, keys.seen(request_id), keys.stats]
        return names, [self.note, GROUP]

    def truth_entry(self, request: BaseHandle | str, vector: Any) -> dict[bytes, bytes] | None:
        """The shadow stream's entry for a reported truth, or None when it can belong to no sample.

        Raises:
            BadShape, NotFinite, BadNorm: The vector breaks the contract.
        """
        array = checked_vector(vector)
        if isinstance(request, BaseHandle):
            key = request.sample_key
        else:
            key = self._sample_keys.get(request, request)
        if not sampled(key, RATE_MAX, self.settings.sample_salt):
            return None
        return {b"kind": b"truth", b"key": key.encode(), b"vector": wire.encode_vector(array)}

    def close(self, text: str) -> None:
        """Tells every waiter, and whoever sends from now on, that no answer will be received any more."""
        self.inflight.close(lambda request_id: ProducerClosed(f"request {request_id}: {text}"))


def checked_statuses(found: Any, count: int) -> list[int]:
    """The statuses that submit.lua gave `count` requests.

    Raises:
        ServerUnavailable: It is the answer to something else; a repeat on a new connection is safe.
    """
    if isinstance(found, list) and len(found) == count and all(type(status) is int for status in found):
        return found
    error = ServerUnavailable("the server's answers came out of step; the connection is opened anew")
    error.maybe_done = True
    raise error


def id_of(request: BaseHandle | str) -> str:
    """The request id of a handle, or the id itself."""
    return request.id if isinstance(request, BaseHandle) else request


def watch(pending: Pending, index: int, put: Callable[[tuple[int, Any]], object]) -> None:
    """Puts `(index, reply or error)` somewhere when the final answer comes."""
    final: Any = pending.final
    final.add_done_callback(lambda done: put((index, done.exception() or done.result())))
