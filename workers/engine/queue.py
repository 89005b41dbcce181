"""The leased queue: with its reader (workers/engine/reads.py) all that speaks to Redis streams for a worker.

The chain of escalations is requests -> fallback -> fallback:secondary; behind the last one there is no
room, so that an escalation from there finds it full.

States of an entry: waiting -> leased -> gone (answered, escalated, dead), or leased -> waiting
again when its lease runs out. Every change that ends an entry is one call of lua/finish.lua.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import sha1
from typing import Any, cast

import redis
from redis.exceptions import NoScriptError

from producer.keys import GROUP, REQUEST
from producer.transport.clock import ServerClock
from producer.transport.connection import DRIVER_ERRORS, driver_errors, script_text, translated
from producer.transport.link import Script, written
from workers.engine.entry import Entry, Outcome
from workers.engine.reads import EntryReader, load
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


class LeasedQueue(EntryReader):
    """Leases entries of one stream, or of the three levels of new requests, and ends them.

    Attributes:
        clock: The server's, measured here and by the keeper.
        lent: Scripts of the producers, who may be allowed no text of their own.
        finished_at: Server's TIME at the last finish.
    """

    def __init__(self, settings: WorkerSettings, stream: str, name: str) -> None:
        super().__init__(settings, stream, name)
        keys, limits = self.keys, settings.queue
        self.clock = ServerClock()
        self.finished_at: Sequence[bytes] = ()
        self._unread: dict[str, int] = {}
        self._finish, self._begin = load("finish"), load("begin")
        self.lent = tuple(Script(script_text("producer", name)) for name in ("submit", "cancel"))
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
        self.asked = False
        self._writes.cut()  # of the time before the server was away
        self.ensure_group()
        if not self.sizes.lost_alone:
            self.release()
        # Before 7.2, the server knows who reads from the first entry on; people look for it sooner.
        with driver_errors(self.settings.producer.url), suppress(redis.ResponseError):
            self.client.xgroup_createconsumer(self.streams[0], GROUP, self.name)

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

    def finish(self, outcomes: Sequence[Outcome], *, then_lease: bool = False) -> list[bytes]:
        """Ends the entries; returns `b"ok"`, `b"lost"` or `b"full"` for each.

        Args:
            then_lease: The next call is `lease`. Where that would be a usual read, it is `asked` for in the
                same write, so that the server is woken once for both.
        """
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
            answer: Any = None
            if then_lease and self.usual:
                self.asked = True
                self._reading.send([(self._finish.by_hash, *words), *self._usual[1]])
                [answer] = self._reading.read(1)
            if isinstance(answer, Exception) and not isinstance(answer, NoScriptError):
                raise answer  # whatever the script ended stays so
            if answer is None or isinstance(answer, NoScriptError):
                answer = self._writes.run_words(self._finish, words)
            *statuses, seconds, micros = cast("list[bytes]", answer)
        except DRIVER_ERRORS as error:
            raise translated(error, self.settings.producer.url) from error
        self.finished_at = seconds, micros
        return statuses

    def release(self) -> int:
        """Hands everything still leased back at once; returns how many entries."""
        self.asked = False
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
