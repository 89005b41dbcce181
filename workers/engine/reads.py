"""Reads of a worker: entries whose lease ran out, else new ones, level by level.

A queue of new requests is three streams, one a level; a fallback's is one. A read takes what is there, and
waits where nothing is. How much it asks for is learned from the reads before (workers/engine/sizes.py), and
low work takes its turns beside live traffic (workers/engine/yielding.py). The usual read teaches nothing: a
few small entries of the levels above low came, and nothing is left.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import redis

from producer.keys import GROUP, REQUEST, Keys
from producer.messages import PAYLOAD_BYTES_MAX
from producer.transport.connection import DRIVER_ERRORS, LOST, connect, driver_errors, script_text, translated
from producer.transport.link import Link, Script, Word, written
from workers.engine.entry import Entry
from workers.engine.sizes import ReadSizes
from workers.engine.yielding import Yielding
from workers.settings import WorkerSettings

#: What a read asks of each level, and its commands.
_Asked = tuple[Sequence[int], list[tuple[Word, ...]]]


class EntryReader:
    """Leases entries of one stream, or of the three levels of new requests.

    Attributes:
        streams: What is read, the most urgent first.
        more: Whether the last lease may have left something waiting.
        heavy: Whether it holds messages of many contexts, so that it may be too much for one step.
        low: Whether the last lease had low work, or has kept some for the next one.
        sizes: How many entries a read asks for.
        asked: Whether the next lease was asked for already, together with a finish: its answer is due.
    """

    def __init__(self, settings: WorkerSettings, stream: str, name: str) -> None:
        self.settings, self.stream, self.name = settings, stream, name
        self.keys = keys = Keys(settings.producer.queue)
        several = {keys.requests: keys.levels, keys.shadow: (stream, keys.truths)}
        self.streams = several.get(stream, (stream,))
        self._levels = {stream.encode(): level for level, stream in enumerate(self.streams)}
        self._first_place = keys.places.index(self.streams[0]) + 1 if stream in keys.places else 0
        self._yielding = Yielding() if stream == keys.requests else None
        self.sizes = ReadSizes(settings.queue.batch_max, len(self.streams), self._yielding)
        self.more = self.heavy = self.low = self.asked = False
        self.client: redis.Redis = connect(settings.producer, block_ms=settings.queue.block_ms)
        # Two connections: a micro-batch may be finished while the next one is read.
        self._reading, self._writes, self._reclaim = Link(self.client), Link(self.client), load("reclaim")
        self._reclaim_at, self._live_at_s = 0.0, 0.0
        self._reclaim_from: list[bytes] = []
        self._read_words = written("XREADGROUP", "GROUP", GROUP, name, "COUNT")
        self._wait_words, self._live_words = (
            written("STREAMS", *streams, *(">" for _ in streams))
            for streams in (self.streams, self.streams[:-1])
        )
        self._usual = self._waiting()

    def lease(self, *, block: bool = True) -> list[Entry]:
        """Up to `batch_max` entries: expired leases first, then new work, else a blocking wait.

        Never waits for more to come: what is there is taken. Returns [] after `block_ms`, or at
        once without `block`. Without it, levels are strict (workers/engine/sizes.py). Low work that came with
        live traffic is given by the next call, when that is done (workers/engine/yielding.py).
        """
        if self.low and (kept := self._kept()):
            return kept
        try:
            due = not self.asked and time.monotonic() >= self._reclaim_at
            if due and (expired := self._reclaimed()):
                return expired
            usual = self.asked or (block and self.sizes.usual)
            return self._taken(self._usual) if usual else self._read(block)
        except DRIVER_ERRORS as error:
            if isinstance(error, LOST):
                self.sizes.note_lost()
                self._reclaim_at = 0.0  # what was delivered to nobody is looked for at once
            raise translated(error, self.settings.producer.url) from error

    def unask(self) -> None:
        """Ends the wait for what was asked for: the server gives us nothing more. The next `lease` raises, so
        that what it gave already is handed back."""
        if self.asked:
            self._reading.cut()

    @property
    def usual(self) -> bool:
        """True if the next lease will wait for whatever comes first, and do nothing else before."""
        usual = self.sizes.usual and not (self.low or self.settings.queue.linger_ms)
        return usual and time.monotonic() < self._reclaim_at

    @property
    def kept(self) -> list[Entry]:
        """Low entries that are leased, and are next when the live ones that came with them are done."""
        return [] if self._yielding is None else self._yielding.kept

    @property
    def yields(self) -> bool:
        """True if what it gave last is low work beside live traffic."""
        return self._yielding is not None and self._yielding.interruptible

    def lease_live(self) -> list[Entry]:
        """New entries of the levels above low that are there, for one who works on low ones; what is known of
        those stays."""
        more, heavy = self.more, self.heavy
        try:
            with driver_errors(self.settings.producer.url):
                return self._taken(self._by_level([*self.sizes.beside()[:-1], 0]))
        finally:
            self.more, self.heavy = more, heavy

    def _read(self, block: bool) -> list[Entry]:
        """Reads new entries: level by level in one round trip, or with `block` the first that come."""
        if not block:
            return self._taken(self._by_level(self.sizes.counts()))
        pause_ms = 0
        if self._yielding is not None and self._yielding.waits:
            pause_ms = self._yielding.pause_ms()
            if not pause_ms and (entries := self._taken(self._by_level(self.sizes.beside()))):
                return entries
        return self._taken(self._waiting(pause_ms))

    def _by_level(self, counts: Sequence[int]) -> _Asked:
        """A read of so many that are there, level by level."""
        pairs = zip(counts, self.streams, strict=True)
        return counts, [(self._read_words, count, "STREAMS", stream, ">") for count, stream in pairs if count]

    def _waiting(self, low_pause_ms: int = 0) -> _Asked:
        """A read that waits for what comes first; for so long not for low work, whose turn it is not."""
        block_ms, levels, words = self.settings.queue.block_ms, len(self.streams), self._wait_words
        if low_pause_ms:
            block_ms, levels, words = min(block_ms, low_pause_ms), levels - 1, self._live_words
        count = self.sizes.waiting(levels)
        asked = [count] * levels + [0] * (len(self.streams) - levels)
        return asked, [(self._read_words, count, "BLOCK", block_ms, words)]

    def _taken(self, read: _Asked) -> list[Entry]:
        """The entries that a read gives, and that are next."""
        asked, commands = read
        got, entries, first_place = [0] * len(asked), list[Entry](), self._first_place
        if not self.asked:
            self._reading.send(commands)
        self.asked = False
        for answer in self._reading.read(len(commands)):
            if isinstance(answer, Exception):
                raise answer
            for stream, rows in answer or ():
                level = self._levels[stream]
                got[level] = len(rows)
                entries += [
                    Entry(entry, dict(zip(flat[::2], flat[1::2], strict=True)), 1, first_place + level)
                    for entry, flat in rows
                ]
        largest_bytes = max([len(entry.fields.get(REQUEST, b"")) for entry in entries], default=0)
        left, low = max(got) >= asked[0], self._yielding is not None and got[-1]
        if read is not self._usual or left or low or largest_bytes > PAYLOAD_BYTES_MAX:
            return self._learned(asked, got, entries)
        self.more = self.heavy = False
        if entries:
            self._live_at_s = time.monotonic()
        return entries

    def _learned(
        self, asked: Sequence[int], got: Sequence[int], entries: list[Entry], *, more: bool = False
    ) -> list[Entry]:
        """Lets the next reads learn from this one; returns the entries that are next."""
        if self._yielding is not None:
            self._yielding.note_live(self._live_at_s)  # the usual reads noted it here alone
        self.sizes.took(asked, got, entries)
        self.more, self.heavy = more or self.sizes.more, self.sizes.heavy
        return self._next(entries)

    def _next(self, entries: list[Entry]) -> list[Entry]:
        if self._yielding is not None:
            entries = self._yielding.first(entries)
            self.low = self._yielding.at_work
        return entries

    def _kept(self) -> list[Entry]:
        """The low work that came with what is done now."""
        if self._yielding is None:
            return []
        self._yielding.stop()
        kept, self._yielding.kept = self._yielding.kept, []
        return self._next(kept)

    def _reclaimed(self) -> list[Entry]:
        queue, room = self.settings.queue, self.sizes.entries
        beginning = [b"0-0"] * len(self.streams)
        start = self._reclaim_from or beginning
        arguments = [GROUP, self.name, queue.lease_ms, room, *start]
        # By the connection that may rest for hours: a dead one is found while nobody waits for it.
        self._reclaim_from, rows = self._writes.run(self._reclaim, list(self.streams), arguments)
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
        return self._learned([0] * len(got), got, entries, more=len(rows) >= room)


def load(name: str) -> Script:
    """The script `lua/<name>.lua` of this room, behind the functions that all of them share."""
    return Script(script_text("workers", "common") + script_text("workers", name))
