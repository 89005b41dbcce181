"""The leased queue: the only module of the workers that speaks to Redis streams.

A queue of new requests is three streams, one a level (workers/engine/reads.py); a fallback's is one. The
chain of escalations is requests -> fallback -> fallback:secondary; behind the last one there is no
room, so that an escalation from there finds it full.

States of an entry: waiting -> leased -> gone (answered, escalated, dead), or leased -> waiting
again when its lease runs out. Every change that ends an entry is one call of lua/finish.lua.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import sha1
from typing import Any, cast

import redis

from producer.keys import GROUP, REQUEST, Keys
from producer.transport.clock import ServerClock, time_ms
from producer.transport.connection import DRIVER_ERRORS, LOST, connect, driver_errors, script_text, translated
from producer.transport.link import Link, Script, Word, written
from workers.engine.entry import Entry, Outcome
from workers.engine.reads import ReadSizes
from workers.engine.yielding import Yielding
from workers.settings import WorkerSettings

_RELEASED = "released"
#: A consumer that holds nothing and was silent for this long belongs to a worker that is gone.
_GONE_MS = 600_000
#: Bytes that go to a client between two measurements of its reply stream: an exact count would cost a
#: command for each answer.
UNREAD_BYTES = 2 * 1024**2
#: Memory that an answer takes beside its bytes.
_BESIDE_BYTES = 512
_CLIENTS_MAX = 10_000


class LeasedQueue:
    """Leases entries of one stream, or of the three levels of new requests, and ends them.

    Attributes:
        streams: What is read, the most urgent first.
        clock: The server's, measured here and by the keeper.
        more: Whether the last lease may have left something waiting.
        heavy: Whether it holds messages of many contexts, so that it may be too much for one step.
        lent: Scripts of the producers, who may be allowed no text of their own.
        sizes: How many entries a read asks for.
        finished_at_ms: Server's clock at the last finish.
    """

    def __init__(self, settings: WorkerSettings, stream: str, name: str) -> None:
        self.settings, self.stream, self.name = settings, stream, name
        self.keys = keys = Keys(settings.producer.queue)
        self.clock = ServerClock()
        several = {keys.requests: keys.levels, keys.shadow: (stream, keys.truths)}
        self.streams = several.get(stream, (stream,))
        self._levels = {stream.encode(): level for level, stream in enumerate(self.streams)}
        self._first_place = keys.places.index(self.streams[0]) + 1 if stream in keys.places else 0
        self._yielding = Yielding() if stream == keys.requests else None
        self.sizes = ReadSizes(settings.queue.batch_max, len(self.streams), self._yielding)
        self.more, self.heavy, self.finished_at_ms = False, False, 0.0
        self._write_fixed_words()
        self._unread: dict[str, int] = {}
        self.client: redis.Redis = connect(settings.producer, block_ms=settings.queue.block_ms)
        # Two connections: a micro-batch may be finished while the next one is read.
        self._reading, self._writes = Link(self.client), Link(self.client)
        self._finish, self._reclaim, self._begin = load("finish"), load("reclaim"), load("begin")
        self.lent = tuple(Script(script_text("producer", name)) for name in ("submit", "cancel"))
        self._reclaim_at = 0.0
        self._reclaim_from: list[bytes] = []

    def _write_fixed_words(self) -> None:
        """Encodes the words that are the same in every call."""
        keys, limits = self.keys, self.settings.queue
        self._read_words = written("XREADGROUP", "GROUP", GROUP, self.name, "COUNT")
        live = self.streams[:-1]
        self._wait_words, self._live_words = (
            written("STREAMS", *streams, *(">" for _ in streams)) for streams in (self.streams, live)
        )
        self._finish_keys = written(*keys.places, *keys.counters, keys.shadow, keys.dead, keys.stats)
        self._finish_words = written(
            *(GROUP, self.name, limits.reply_ttl_ms),
            *(limits.shadow_entries_max, limits.dead_entries_max),
            *(limits.fallback_entries_max, limits.fallback_bytes_max),
            *(limits.secondary_entries_max, limits.secondary_bytes_max, keys.seen_prefix),
        )
        self._reply_limits = limits.reply_entries_max, limits.reply_bytes_max

    def ensure_group(self) -> None:
        """Creates streams and groups (ones that exist are fine), and forgets workers long gone."""
        with driver_errors(self.settings.producer.url):
            while self.clock.due:
                self.clock.measured(self.clock.asks(), self._reading.call("TIME"))
            for stream in self.streams:
                try:
                    self.client.xgroup_create(stream, GROUP, id="0", mkstream=True)
                except redis.OutOfMemoryError:
                    pass  # what waits takes the memory: it must be possible to join and drain it
                except redis.ResponseError as error:
                    if "BUSYGROUP" not in str(error):
                        raise
            self._reading.run(load("prune"), list(self.streams), [GROUP, _GONE_MS])
            for script in self.lent:
                self._reading.load(script)
            self._expect_sizes()

    def rejoin(self) -> None:
        """After the server was away: makes sure of the groups, and hands back what is in our name.

        A read whose answer was lost left entries there that we know nothing of. When it asked for one
        of each level, that one may be too large for the way to here: it is left to its lease, so that
        what waits behind it is read first.
        """
        if self._yielding is not None:
            self._yielding.kept = []
        self.ensure_group()
        if not self.sizes.lost_alone:
            self.release()
        # Before 7.2, the server knows who reads from the first entry on; people look for it sooner.
        with driver_errors(self.settings.producer.url), suppress(redis.ResponseError):
            self.client.xgroup_createconsumer(self.streams[0], GROUP, self.name)

    def lease(self, *, block: bool = True) -> list[Entry]:
        """Up to `batch_max` entries: expired leases first, then new work, else a blocking wait.

        Never waits for more to come: what is there is taken. Returns [] after `block_ms`, or at
        once without `block`. Without it, levels are strict (workers/engine/reads.py). Low work that came with
        live traffic is given by the next call, when that is done (workers/engine/yielding.py).
        """
        if self._yielding is None:
            return self._leased(block)
        self._yielding.stop()
        kept, self._yielding.kept = self._yielding.kept, []
        return self._yielding.first(kept or self._leased(block))

    @property
    def yields(self) -> bool:
        """True if what it gave last is low work beside live traffic."""
        return self._yielding is not None and self._yielding.interruptible

    def lease_live(self) -> list[Entry]:
        """New entries of the levels above low that are there, for one who works on low ones."""
        with driver_errors(self.settings.producer.url):
            return self._read_levels([*self.sizes.beside()[:-1], 0])

    def _leased(self, block: bool) -> list[Entry]:
        """Entries whose lease ran out, else new ones."""
        try:
            due = time.monotonic() >= self._reclaim_at
            return (due and self._reclaimed()) or self._read(block)
        except DRIVER_ERRORS as error:
            if isinstance(error, LOST):
                self.sizes.note_lost()
                self._reclaim_at = 0.0  # what was delivered to nobody is looked for at once
            raise translated(error, self.settings.producer.url) from error

    def begin(self, entries: Sequence[Entry]) -> list[Entry]:
        """Counts entries that were delivered before as begun; returns those that are still ours.

        Only what was begun counts towards `deliveries_max`: a delivery that nobody received does not.
        """
        arguments: list[Any] = [GROUP, self.name]
        for entry in entries:
            arguments += (entry.place - self._first_place + 1, entry.id, entry.deliveries)
        with driver_errors(self.settings.producer.url):
            held = self._reading.run(self._begin, list(self.streams), arguments)
        return [entry for entry, is_held in zip(entries, held, strict=True) if is_held]

    def ids(self, entries: Iterable[Entry]) -> dict[str, list[bytes]]:
        """The ids of some entries by their stream."""
        found: dict[str, list[bytes]] = {}
        for entry in entries:
            found.setdefault(self.streams[entry.place - self._first_place], []).append(entry.id)
        return found

    def finish(self, outcomes: Sequence[Outcome]) -> list[bytes]:
        """Ends the entries; returns `b"ok"`, `b"lost"` or `b"full"` for each."""
        if not outcomes:
            return []
        numbers: dict[str, int] = {"": 0}  # of the clients; nobody is told by the first
        unread, places, arguments = self._unread, set(), list[Any]()
        if len(unread) > _CLIENTS_MAX:
            unread.clear()
        for o in outcomes:
            number = numbers.setdefault(o.reply_to, len(numbers))
            unread[o.reply_to] = unread.get(o.reply_to, 0) + len(o.payload) + _BESIDE_BYTES
            places.add(str(o.entry.place))
            payload = o.entry.fields.get(REQUEST, b"")
            arguments += (o.entry.place, o.entry.id, o.op, number, o.payload, o.counters, o.sample_key)
            arguments += (o.truth_key, o.truth, len(payload))
            if o.op == "dead":
                arguments += (o.reason, o.message, sha1(payload, usedforsecurity=False).hexdigest())
        _, *clients = numbers
        due = [client for client in clients if unread[client] >= UNREAD_BYTES]
        unread |= {client: unread[client] % UNREAD_BYTES for client in due}
        measured = " ".join([str(numbers[client]) for client in due])
        prefix, fixed = self.keys.replies_prefix, self._finish_keys
        replies = [prefix + client for client in clients]
        said = (self._finish_words, "".join(places), *self._reply_limits, measured)
        words = [fixed.number + len(replies), fixed, *replies, *said, *arguments]
        try:
            *statuses, seconds, micros = cast("list[bytes]", self._writes.run_words(self._finish, words))
        except DRIVER_ERRORS as error:
            raise translated(error, self.settings.producer.url) from error
        self.finished_at_ms = time_ms((seconds, micros))
        return statuses

    def release(self) -> int:
        """Hands everything still leased back at once; returns how many entries."""
        with driver_errors(self.settings.producer.url):
            arguments = [GROUP, self.name, _RELEASED]
            return int(self._reading.run(load("release"), list(self.streams), arguments))

    def close(self) -> None:
        """Closes the connections; what is leased stays leased until it runs out."""
        self._reading.close()
        self._writes.close()
        self.client.close()

    def _expect_sizes(self) -> None:
        """Learns from what waits how large the first read's entries may be."""
        if not self._first_place:
            return
        first = self._first_place - 1
        with self.client.pipeline(transaction=False) as pipe:
            for stream, counter in zip(self.streams, self.keys.counters[first:], strict=False):
                pipe.xlen(stream)
                pipe.get(counter)
            found = [int(value or 0) for value in pipe.execute()]
        for level, (count, size_bytes) in enumerate(zip(found[::2], found[1::2], strict=True)):
            self.sizes.expect(level, size_bytes // max(1, count))

    def _reclaimed(self) -> list[Entry]:
        queue, room = self.settings.queue, self.sizes.entries
        beginning = [b"0-0"] * len(self.streams)
        start = self._reclaim_from or beginning
        arguments = [GROUP, self.name, queue.lease_ms, room, *start]
        self._reclaim_from, rows = self._reading.run(self._reclaim, list(self.streams), arguments)
        if len(rows) < room and start == self._reclaim_from == beginning:
            # All of them were looked at in one go; else the next read goes on.
            self._reclaim_at = time.monotonic() + queue.lease_ms / 4000
        if not rows:
            return []
        first = self._first_place - 1
        # One that was deleted under its lease has no fields.
        entries = [
            Entry(entry, dict(zip(flat[::2], flat[1::2], strict=True)), n + 1, first + i)
            for i, entry, n, flat in rows
        ]
        got = [sum(i == level for i, *_ in rows) for level in range(1, len(self.streams) + 1)]
        self.sizes.took([0] * len(got), got, entries)
        self.more, self.heavy = len(rows) >= room, self.sizes.heavy
        return entries

    def _read(self, block: bool) -> list[Entry]:
        """Reads new entries: level by level in one round trip, or with `block` the first that come."""
        pause_ms = 0
        if block and self._yielding is not None and self._yielding.waits:
            pause_ms = self._yielding.pause_ms()
            if not pause_ms and (entries := self._read_levels(self.sizes.beside())):
                return entries
        return self._wait(pause_ms) if block else self._read_levels(self.sizes.counts())

    def _read_levels(self, asked: Sequence[int]) -> list[Entry]:
        """Reads what is there, level by level."""
        pairs = zip(asked, self.streams, strict=True)
        words = self._read_words
        return self._taken(
            asked, [(words, count, "STREAMS", stream, ">") for count, stream in pairs if count]
        )

    def _wait(self, low_pause_ms: int = 0) -> list[Entry]:
        """Waits for what comes first; for so long not for low work, whose turn it is not."""
        block_ms, levels, words = self.settings.queue.block_ms, len(self.streams), self._wait_words
        if low_pause_ms:
            block_ms, levels, words = min(block_ms, low_pause_ms), levels - 1, self._live_words
        count = self.sizes.waiting(levels)
        asked = [count] * levels + [0] * (len(self.streams) - levels)
        return self._taken(asked, [(self._read_words, count, "BLOCK", block_ms, words)])

    def _taken(self, asked: Sequence[int], commands: list[tuple[Word, ...]]) -> list[Entry]:
        """The entries that reads of so many give."""
        sizes, got, entries = self.sizes, [0] * len(asked), list[Entry]()
        for answer in self._reading.each(commands):
            if isinstance(answer, Exception):
                raise answer
            for stream, rows in answer or ():
                level = self._levels[stream]
                got[level], place = len(rows), self._first_place + level
                entries += [
                    Entry(entry, dict(zip(flat[::2], flat[1::2], strict=True)), 1, place)
                    for entry, flat in rows
                ]
        sizes.took(asked, got, entries)
        self.more, self.heavy = sizes.more, sizes.heavy
        return entries


def load(name: str) -> Script:
    """The script `lua/<name>.lua` of this room, behind the functions that all of them share."""
    return Script(script_text("workers", "common") + script_text("workers", name))
