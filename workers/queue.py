"""The leased queue: the only module of the workers that speaks to Redis streams.

A queue of new requests is three streams, one a level (workers/levels.py); a fallback's is one. The
chain of escalations is requests -> fallback -> fallback:secondary; behind the last one there is no
room, so that an escalation from there finds it full.

States of an entry: waiting -> leased -> gone (answered, escalated, dead), or leased -> waiting
again when its lease runs out. Every change that ends an entry is one call of lua/finish.lua.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, NamedTuple, cast

import redis

from producer.connection import connect, driver_errors, script_text
from producer.keys import GROUP, REQUEST, Keys
from producer.link import Link, Script
from producer.packing import written
from producer.wire import PAYLOAD_BYTES_MAX
from workers.levels import Shares
from workers.settings import WorkerSettings

_RELEASED = "released"
#: Payload that a read should not exceed by much, of each level: one full batch of contexts. A read of
#: four of them takes three times as long for each (it leaves every cache), and saves nothing.
READ_BYTES_MAX = 4 * 1024**2
#: A consumer that holds nothing and was silent for this long belongs to a worker that is gone.
_GONE_MS = 600_000


class Entry(NamedTuple):
    """A leased stream entry.

    Attributes:
        id: Stream id; its first part is the server's time of the append, epoch ms.
        fields: As stored.
        deliveries: How often it was delivered, this time included.
        place: Number of its stream (producer/keys.py); 0 for the shadow stream.
    """

    id: bytes
    fields: dict[bytes, bytes]
    deliveries: int = 1
    place: int = 0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How one leased entry ends.

    Attributes:
        entry: The entry.
        op: "reply", "escalate" (to the next stream of the chain), "both" (escalate, and answer
            provisionally) or "dead".
        reply_to: Client id, or "" when nobody can be told.
        payload: Reply bytes for the client; of an escalated request, the best answer so far.
        counters: Names to count, comma-separated.
        sample_key: Set when the request goes to the shadow stream: "k key", taken at the rate 1/k.
        truth_key, truth: Set when this request reveals the truth of a sampled predecessor.
        reason, message: Of a dead letter.
    """

    entry: Entry
    op: str
    reply_to: str = ""
    payload: bytes = b""
    counters: str = ""
    sample_key: str = ""
    truth_key: str = ""
    truth: bytes = b""
    reason: str = ""
    message: str = ""


class LeasedQueue:
    """Leases entries of one stream, or of the three levels of new requests, and ends them.

    Attributes:
        streams: What is read, the most urgent first.
        more: Whether the last lease may have left something waiting.
        heavy: Whether it holds batches of contexts, so that it may be too much for one step.
    """

    def __init__(self, settings: WorkerSettings, stream: str, name: str) -> None:
        self.settings = settings
        self.stream = stream
        self.name = name
        self.keys = Keys(settings.producer.queue)
        self.streams = self.keys.levels if stream == self.keys.requests else (stream,)
        places = self.keys.places
        self._first_place = places.index(self.streams[0]) + 1 if stream in places else 0
        self._shares = Shares(settings.queue.batch_max, len(self.streams))
        self.more = self.heavy = False
        self._room_max = self._room = settings.queue.batch_max
        self._largest_bytes = 0
        limits, keys, block_ms = settings.queue, self.keys, settings.queue.block_ms
        # The words that are the same in every call.
        self._read_words = written("XREADGROUP", "GROUP", GROUP, name, "COUNT")
        self._wait_words = written(
            "BLOCK", limits.block_ms, "STREAMS", *self.streams, *(">" for _ in self.streams)
        )
        self._finish_keys = written(*places, *keys.counters, keys.shadow, keys.dead, keys.stats)
        self._finish_words = written(
            *(GROUP, name, limits.reply_ttl_ms),
            *(limits.shadow_entries_max, limits.dead_entries_max),
            *(limits.fallback_entries_max, limits.fallback_bytes_max),
            *(limits.secondary_entries_max, limits.secondary_bytes_max, keys.seen_prefix),
        )
        self.client: redis.Redis = connect(settings.producer, block_ms=block_ms, retries=0)
        # Two connections: a batch may be finished while the next one is read.
        self._reads, self._writes = Link(self.client), Link(self.client)
        self._finish, self._reclaim = load("finish"), load("reclaim")
        self._release, self._prune = load("release"), load("prune")
        self._submit, self._cancel = (Script(script_text("producer", name)) for name in ("submit", "cancel"))
        self._reclaim_at = 0.0
        self._reclaim_from: list[bytes] = []

    def ensure_group(self) -> None:
        """Creates streams and groups (ones that exist are fine), and forgets workers long gone."""
        with driver_errors(self.settings.producer.url):
            for stream in self.streams:
                try:
                    self.client.xgroup_create(stream, GROUP, id="0", mkstream=True)
                except redis.ResponseError as error:
                    if "BUSYGROUP" not in str(error):
                        raise
            self._reads.run(self._prune, list(self.streams), [GROUP, _GONE_MS])
            for script in self._submit, self._cancel:  # producers may be allowed no text of their own
                self._reads.load(script)
            self._look_ahead()

    def lease(self, *, block: bool = True) -> list[Entry]:
        """Up to `batch_max` entries: expired leases first, then new work, else a blocking wait.

        Never waits for a batch to fill: what is there is taken. Returns [] after `block_ms`, or at
        once without `block`. Without it, levels are strict (workers/levels.py).
        """
        with driver_errors(self.settings.producer.url):
            room = self._room
            if time.monotonic() >= self._reclaim_at and (reclaimed := self._reclaimed()):
                self.more = len(reclaimed) >= room
                return self._weighed(reclaimed)
            return self._weighed(self._waited() if block or len(self.streams) == 1 else self._taken())

    def finish(self, outcomes: Sequence[Outcome]) -> list[bytes]:
        """Ends the entries; returns `b"ok"`, `b"lost"` or `b"full"` for each."""
        if not outcomes:
            return []
        clients: dict[str, int] = {}
        arguments: list[Any] = [self._finish_words, "".join(map(str, {o.entry.place for o in outcomes}))]
        for o in outcomes:
            number = clients.setdefault(o.reply_to, len(clients) + 1) if o.reply_to else 0
            payload = o.entry.fields.get(REQUEST, b"")
            arguments += (o.entry.place, o.entry.id, o.op, number, o.payload, o.counters, o.sample_key)
            arguments += (o.truth_key, o.truth, len(payload))
            if o.op == "dead":
                arguments += (o.reason, o.message, sha1(payload, usedforsecurity=False).hexdigest())
        fixed = self._finish_keys
        words = [fixed.number + len(clients), fixed, *map(self.keys.replies, clients), *arguments]
        with driver_errors(self.settings.producer.url):
            return cast("list[bytes]", self._writes.run_words(self._finish, words))

    def release(self) -> int:
        """Hands everything still leased back at once; returns how many entries."""
        with driver_errors(self.settings.producer.url):
            return int(self._reads.run(self._release, list(self.streams), [GROUP, self.name, _RELEASED]))

    def close(self) -> None:
        """Closes the connections; what is leased stays leased until it runs out."""
        self._reads.close()
        self._writes.close()
        self.client.close()

    def _look_ahead(self) -> None:
        """What waits tells how large the first read's entries may be."""
        if not self._first_place:
            return
        first = self._first_place - 1
        counters = self.keys.counters[first : first + len(self.streams)]
        with self.client.pipeline(transaction=False) as pipe:
            for stream, counter in zip(self.streams, counters, strict=True):
                pipe.xlen(stream)
                pipe.get(counter)
            found = [int(value or 0) for value in pipe.execute()]
        pairs = zip(found[::2], found[1::2], strict=True)
        self._make_room(max(size_bytes // max(1, count) for count, size_bytes in pairs))

    def _weighed(self, entries: list[Entry]) -> list[Entry]:
        largest_bytes = max((len(entry.fields.get(REQUEST, b"")) for entry in entries), default=0)
        self.heavy = largest_bytes > PAYLOAD_BYTES_MAX
        # Large ones seldom come alone: what was seen is forgotten over several reads.
        self._make_room(max(largest_bytes, self._largest_bytes // 2))
        return entries

    def _make_room(self, largest_bytes: int) -> None:
        self._largest_bytes = largest_bytes
        fitting = READ_BYTES_MAX // largest_bytes if largest_bytes > PAYLOAD_BYTES_MAX else self._room_max
        self._room = max(1, min(fitting, self._room_max))

    def _reclaimed(self) -> list[Entry]:
        queue = self.settings.queue
        beginning = [b"0-0"] * len(self.streams)
        start = self._reclaim_from or beginning
        arguments = [GROUP, self.name, queue.lease_ms, self._room, *start]
        self._reclaim_from, rows = self._reads.run(self._reclaim, list(self.streams), arguments)
        if len(rows) < self._room and start == self._reclaim_from == beginning:
            # All of them were looked at in one go; else the next read goes on.
            self._reclaim_at = time.monotonic() + queue.lease_ms / 4000
        first = self._first_place
        return [Entry(entry, _fields(flat), n, first + i - 1) for i, entry, n, flat in rows]

    def _waited(self) -> list[Entry]:
        """What is there, or what comes first within `block_ms`."""
        count, levels = min(self._shares.waiting, self._room), len(self.streams)
        found = self._reads.call(self._read_words, count, self._wait_words)
        return self._entries(found or (), [count] * levels)

    def _taken(self) -> list[Entry]:
        """What is there, level by level, in one round trip."""
        counts = [min(count, self._room) for count in self._shares.counts()]
        pairs, words = zip(counts, self.streams, strict=True), self._read_words
        answers = self._reads.each([(words, count, "STREAMS", stream, ">") for count, stream in pairs])
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return self._entries([answer[0] for answer in answers if answer], counts)

    def _entries(self, found: Iterable[Any], asked: list[int]) -> list[Entry]:
        """Entries of `[[stream, [[id, [name, value, ...]], ...]], ...]`; notes what each level gave."""
        got, entries = [0] * len(asked), []
        for stream, rows in found:
            level = self.streams.index(stream.decode())
            got[level], place = len(rows), self._first_place + level
            entries += [Entry(entry_id, _fields(flat), 1, place) for entry_id, flat in rows]
        self._shares.took(asked, got)
        self.more = self._shares.more
        return entries


def load(name: str) -> Script:
    """The script `lua/<name>.lua` of this room."""
    return Script(script_text("workers", name))


def _fields(flat: list[bytes] | None) -> dict[bytes, bytes]:
    """Names and values in turn; None when the entry was deleted under its lease."""
    return dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {}
