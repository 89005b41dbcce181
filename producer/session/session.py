"""What the synchronous and the asyncio producer share: everything but the I/O."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any

from producer.errors import InvalidRequest, ProducerClosed, QueueError
from producer.keys import GROUP, Keys
from producer.protocol import wire
from producer.protocol.checks import checked_vector
from producer.sampling import RATE_MAX, sampled
from producer.session import future as waiting
from producer.session.calls import limit_arguments, request_arguments
from producer.session.delivery import Delivery
from producer.session.handle import BaseHandle
from producer.session.inflight import FORKED, REMEMBERED_MAX, Inflight
from producer.session.outage import Outage
from producer.session.pending import FutureLike, Pending
from producer.session.replies import ReplyCursor
from producer.session.requests import Options, Outgoing, new_id, prepare, prepare_all, prepare_batch
from producer.settings import ProducerSettings, settings_of
from producer.transport import forks
from producer.transport.clock import ServerClock
from producer.transport.packing import written

SHADOW_ENTRIES_MAX = 20_000
#: Requests that `predict_many` prepares and sends together.
CHUNK = 64


class Session:
    """One producer's identity, limits and requests in flight."""

    def __init__(
        self, url: str | None, settings: ProducerSettings | None, make_future: Callable[[], FutureLike]
    ) -> None:
        self.settings = settings_of(url, settings)
        name = self.settings.client
        self.client_id = f"{name}.{new_id()}" if name else new_id()
        self.keys = keys = Keys(self.settings.queue)
        self._submit_keys = [*keys.levels, *keys.counters[:3], keys.stats]
        # The same, as they go out in each call.
        # Every producer may read who noted an id, and must not learn there whom to answer in our name.
        self.note = blake2b(self.client_id.encode(), digest_size=16).hexdigest()
        limits = limit_arguments(keys, self.settings, self.note)
        self._submit_words = written(len(self._submit_keys), *self._submit_keys, *limits)
        self.clock = ServerClock()
        self.inflight = Inflight(self.settings.in_flight_max, self.settings.seen_window_ms)
        self.cursor = ReplyCursor(keys, self.client_id, self.inflight)
        self._make_future = make_future
        self._outage = Outage("submit")
        self._sample_keys: OrderedDict[str, str] = OrderedDict()
        self._process_id = os.getpid()
        forks.tell(self)

    @property
    def elsewhere(self) -> bool:
        """Whether this is the child of a fork: no reply reader runs here, and nothing is ours to end."""
        return os.getpid() != self._process_id

    def check_process(self) -> None:
        """Refuses to work in a forked child.

        Raises:
            ProducerClosed: This is another process than the one that made the producer.
        """
        if self.elsewhere:
            raise ProducerClosed(FORKED)

    def forked(self) -> None:
        """In a child: tells whoever waits there. Threads that are gone may have held these locks."""
        waiting.forked()
        self.inflight.forked()

    def prepare_all(self, contexts: Sequence[Any], options: Sequence[Options] | Options) -> list[Outgoing]:
        """Checks and encodes; the first wrong one refuses all.

        Raises:
            InvalidRequest, DeadlineExceeded: See `requests.prepare`.
        """
        if isinstance(options, Options):
            return prepare_all(contexts, options, self.client_id, self.settings, self.clock.now_ms())
        if len(options) != len(contexts):
            raise InvalidRequest(f"{len(contexts)} contexts, but {len(options)} options; send one for each")
        pairs = zip(contexts, options, strict=True)
        now_ms = self.clock.now_ms()
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

    def delivery(self, outgoing: Sequence[Outgoing], *, block: bool) -> Delivery:
        """Starts taking these requests into the queue."""
        for item in outgoing:
            if item.sample_key != item.id:
                self._sample_keys[item.id] = item.sample_key
                if len(self._sample_keys) > REMEMBERED_MAX:
                    self._sample_keys.popitem(last=False)
        return Delivery(outgoing, self.inflight, self.settings, self._make_future, self._outage, block=block)

    def submit_call(self, batch: Sequence[Outgoing]) -> tuple[list[str], list[Any]]:
        """Keys and arguments of lua/submit.lua."""
        limits = limit_arguments(self.keys, self.settings, self.note)
        return self._submit_keys, [*limits, *request_arguments(batch)]

    def submit_words(self, batch: Sequence[Outgoing]) -> list[Any]:
        """The same for `Link.run_words`."""
        return [self._submit_words, *request_arguments(batch)]

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


def id_of(request: BaseHandle | str) -> str:
    """The request id of a handle, or the id itself."""
    return request.id if isinstance(request, BaseHandle) else request


def watch(pending: Pending, index: int, put: Callable[[tuple[int, Any]], object]) -> None:
    """Puts `(index, reply or error)` somewhere when the final answer comes."""
    future: Any = pending.final
    future.add_done_callback(lambda done: put((index, done.exception() or done.result())))


async def each_of(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    """Walks an iterable of either kind."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
