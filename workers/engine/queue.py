"""The leased queue: the only module of the workers that speaks to Redis streams.

A queue of new requests is three streams, one a level (workers/engine/levels.py); a fallback's is one. The
chain of escalations is requests -> fallback -> fallback:secondary; behind the last one there is no
room, so that an escalation from there finds it full.

States of an entry: waiting -> leased -> gone (answered, escalated, dead), or leased -> waiting
again when its lease runs out. Every change that ends an entry is one call of lua/finish.lua.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from hashlib import sha1
from typing import Any, cast

import redis

from producer.keys import GROUP, REQUEST, Keys
from producer.protocol.wire import PAYLOAD_BYTES_MAX
from producer.transport.clock import ServerClock
from producer.transport.connection import LOST, connect, driver_errors, script_text
from producer.transport.link import Link, Script
from producer.transport.packing import written
from workers.engine.entry import Entry, Outcome
from workers.engine.levels import Shares
from workers.engine.room import Room
from workers.engine.unread import BESIDE_BYTES, Unread
from workers.settings import WorkerSettings

_RELEASED = "released"
#: A consumer that holds nothing and was silent for this long belongs to a worker that is gone.
_GONE_MS = 600_000


class LeasedQueue:
    """Leases entries of one stream, or of the three levels of new requests, and ends them.

    Attributes:
        streams: What is read, the most urgent first.
        clock: The server's, measured here and by the keeper.
        more: Whether the last lease may have left something waiting.
        heavy: Whether it holds batches of contexts, so that it may be too much for one step.
        lent: Scripts of the producers, who may be allowed no text of their own.
        room: How many entries a read asks for.
    """

    def __init__(self, settings: WorkerSettings, stream: str, name: str) -> None:
        self.settings = settings
        self.stream = stream
        self.name = name
        self.keys = Keys(settings.producer.queue)
        self.clock = ServerClock()
        several = {self.keys.requests: self.keys.levels, self.keys.shadow: (stream, self.keys.truths)}
        self.streams = several.get(stream, (stream,))
        places = self.keys.places
        self._first_place = places.index(self.streams[0]) + 1 if stream in places else 0
        self._shares = Shares(settings.queue.batch_max, len(self.streams))
        self.more = self.heavy = False
        self.room = Room(settings.queue.batch_max)
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
        self._reply_limits = limits.reply_entries_max, limits.reply_bytes_max
        self._unread = Unread()
        self.client: redis.Redis = connect(settings.producer, block_ms=block_ms, retries=0)
        # Two connections: a batch may be finished while the next one is read.
        self._reads, self._writes = Link(self.client), Link(self.client)
        self._finish, self._reclaim, self._begin = load("finish"), load("reclaim"), load("begin")
        self._release, self._prune = load("release"), load("prune")
        self.lent = tuple(Script(script_text("producer", name)) for name in ("submit", "cancel"))
        self._reclaim_at = 0.0
        self._reclaim_from: list[bytes] = []

    def ensure_group(self) -> None:
        """Creates streams and groups (ones that exist are fine), and forgets workers long gone."""
        with driver_errors(self.settings.producer.url):
            self.clock.measured(self.clock.asks(), self._reads.call("TIME"))
            for stream in self.streams:
                try:
                    self.client.xgroup_create(stream, GROUP, id="0", mkstream=True)
                except redis.OutOfMemoryError:
                    pass  # what waits takes the memory: it must be possible to join and drain it
                except redis.ResponseError as error:
                    if "BUSYGROUP" not in str(error):
                        raise
            self._reads.run(self._prune, list(self.streams), [GROUP, _GONE_MS])
            for script in self.lent:
                self._reads.load(script)
            self._look_ahead()

    def rejoin(self) -> None:
        """After the server was away: makes sure of the groups, and hands back what is in our name.

        A read whose answer was lost left entries there that we know nothing of. When it asked for one
        of each level, that one may be too large for the way to here: it is left to its lease, so that
        what waits behind it is read first.
        """
        self.ensure_group()
        if not self.room.lost_alone:
            self.release()

    def lease(self, *, block: bool = True) -> list[Entry]:
        """Up to `batch_max` entries: expired leases first, then new work, else a blocking wait.

        Never waits for a batch to fill: what is there is taken. Returns [] after `block_ms`, or at
        once without `block`. Without it, levels are strict (workers/engine/levels.py).
        """
        with driver_errors(self.settings.producer.url):
            try:
                entries = self._read(block)
            except LOST:
                self.room.note_lost()
                self._reclaim_at = 0.0  # what was delivered to nobody is looked for at once
                raise
        self.room.note_came()
        largest_bytes = max((len(entry.fields.get(REQUEST, b"")) for entry in entries), default=0)
        self.heavy = largest_bytes > PAYLOAD_BYTES_MAX
        self.room.expect(largest_bytes)
        return entries

    def begin(self, entries: Sequence[Entry]) -> list[Entry]:
        """Counts entries that were delivered before as begun; returns those that are still ours.

        Only what was begun counts towards `deliveries_max`: a delivery that nobody received does not.
        """
        arguments: list[Any] = [GROUP, self.name]
        for entry in entries:
            arguments += (self._number(entry) + 1, entry.id, entry.deliveries)
        with driver_errors(self.settings.producer.url):
            held = self._reads.run(self._begin, list(self.streams), arguments)
        return [entry for entry, is_held in zip(entries, held, strict=True) if is_held]

    def ids(self, entries: Iterable[Entry]) -> dict[str, list[bytes]]:
        """The ids of some entries by their stream."""
        found: dict[str, list[bytes]] = {}
        for entry in entries:
            found.setdefault(self.streams[self._number(entry)], []).append(entry.id)
        return found

    def finish(self, outcomes: Sequence[Outcome]) -> list[bytes]:
        """Ends the entries; returns `b"ok"`, `b"lost"` or `b"full"` for each."""
        if not outcomes:
            return []
        clients: dict[str, int] = {}
        sizes: list[int] = []  # of the answers, by client
        arguments: list[Any] = []
        for o in outcomes:
            number = clients.setdefault(o.reply_to, len(clients) + 1) if o.reply_to else 0
            if number > len(sizes):
                sizes.append(0)
            if number:
                sizes[number - 1] += len(o.payload) + BESIDE_BYTES
            payload = o.entry.fields.get(REQUEST, b"")
            arguments += (o.entry.place, o.entry.id, o.op, number, o.payload, o.counters, o.sample_key)
            arguments += (o.truth_key, o.truth, len(payload))
            if o.op == "dead":
                arguments += (o.reason, o.message, sha1(payload, usedforsecurity=False).hexdigest())
        fixed = self._finish_keys
        places = "".join(map(str, {o.entry.place for o in outcomes}))
        due = self._unread.due(zip(clients, sizes, strict=True))
        said = (self._finish_words, places, *self._reply_limits, due)
        words = [fixed.number + len(clients), fixed, *map(self.keys.replies, clients), *said, *arguments]
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
        self.room.expect(max(size_bytes // max(1, count) for count, size_bytes in pairs))

    def _number(self, entry: Entry) -> int:
        """Which of `streams` it is from."""
        return entry.place - self._first_place

    def _read(self, block: bool) -> list[Entry]:
        room = self.room.entries
        if time.monotonic() >= self._reclaim_at and (reclaimed := self._reclaimed(room)):
            self.more = len(reclaimed) >= room
            return reclaimed
        return self._waited(room) if block or len(self.streams) == 1 else self._taken(room)

    def _reclaimed(self, room: int) -> list[Entry]:
        queue = self.settings.queue
        beginning = [b"0-0"] * len(self.streams)
        start = self._reclaim_from or beginning
        arguments = [GROUP, self.name, queue.lease_ms, room, *start]
        self._reclaim_from, rows = self._reads.run(self._reclaim, list(self.streams), arguments)
        if len(rows) < room and start == self._reclaim_from == beginning:
            # All of them were looked at in one go; else the next read goes on.
            self._reclaim_at = time.monotonic() + queue.lease_ms / 4000
        first = self._first_place
        return [Entry(entry, _fields(flat), n + 1, first + i - 1) for i, entry, n, flat in rows]

    def _waited(self, room: int) -> list[Entry]:
        """What is there, or what comes first within `block_ms`."""
        count, levels = min(self._shares.waiting, room), len(self.streams)
        found = self._reads.call(self._read_words, count, self._wait_words)
        return self._entries(found or (), [count] * levels)

    def _taken(self, room: int) -> list[Entry]:
        """What is there, level by level, in one round trip."""
        counts = [min(count, room) for count in self._shares.counts()]
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


def _fields(flat: list[bytes]) -> dict[bytes, bytes]:
    """Names and values in turn; none when the entry was deleted under its lease."""
    return dict(zip(flat[::2], flat[1::2], strict=True))
