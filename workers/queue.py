"""The leased queue: the only module of the workers that speaks to Redis streams.

States of an entry: waiting -> leased -> gone (answered, escalated, dead), or leased -> waiting
again when its lease runs out. Every change that ends an entry is one call of lua/finish.lua.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import redis

from producer.connection import connect, driver_errors, script_text
from producer.keys import GROUP, Keys
from producer.link import Link, Script
from workers.settings import QueueSettings, WorkerSettings

_RELEASED = "released"
#: A consumer that holds nothing and was silent for this long belongs to a worker that is gone.
_GONE_MS = 600_000


class Entry(NamedTuple):
    """A leased stream entry.

    Attributes:
        id: Stream id; its first part is the server's time of the append, epoch ms.
        fields: As stored.
        deliveries: How often it was delivered, this time included.
    """

    id: bytes
    fields: dict[bytes, bytes]
    deliveries: int = 1


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
        sample_key: Set when the request goes to the shadow stream.
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


class Next(NamedTuple):
    """Where an escalated entry goes, and what has room there."""

    stream: str
    counter: str
    entries_max: int
    bytes_max: int


class LeasedQueue:
    """Leases entries of one stream and ends them.

    It knows the next stream of the chain requests -> fallback -> fallback:secondary. Behind the last
    one there is no room: whoever escalates from there finds it full.
    """

    def __init__(self, settings: WorkerSettings, stream: str, name: str) -> None:
        self.settings = settings
        self.stream = stream
        self.name = name
        self.keys = Keys(settings.producer.queue)
        self._bytes, self._next = _chain(self.keys, settings.queue, stream)
        block_ms = settings.queue.block_ms
        self.client: redis.Redis = connect(settings.producer, block_ms=block_ms, retries=0)
        # Two connections: a batch may be finished while the next one is read.
        self._reads, self._writes = Link(self.client), Link(self.client)
        self._finish, self._reclaim = load("finish"), load("reclaim")
        self._release, self._prune = load("release"), load("prune")
        self._reclaim_at = 0.0

    def ensure_group(self) -> None:
        """Creates stream and group (one that exists is fine), and forgets workers long gone."""
        with driver_errors(self.settings.producer.url):
            try:
                self.client.xgroup_create(self.stream, GROUP, id="0", mkstream=True)
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
            self._reads.run(self._prune, [self.stream], [GROUP, _GONE_MS])

    def lease(self, *, block: bool = True) -> list[Entry]:
        """Up to `batch_max` entries: expired leases first, then new work, else a blocking wait.

        Never waits for a batch to fill: what is there is taken. Returns [] after `block_ms`, or at
        once without `block`.
        """
        with driver_errors(self.settings.producer.url):
            now = time.monotonic()
            if now >= self._reclaim_at:
                self._reclaim_at = now + self.settings.queue.lease_ms / 4000
                reclaimed = self._reclaimed()
                if len(reclaimed) == self.settings.queue.batch_max:
                    self._reclaim_at = now  # there may be more
                if reclaimed:
                    return reclaimed
            return self._read(block)

    def finish(self, outcomes: Sequence[Outcome]) -> list[bytes]:
        """Ends the entries; returns `b"ok"`, `b"lost"` or `b"full"` for each."""
        if not outcomes:
            return []
        queue, keys = self.settings.queue, self.keys
        clients: dict[str, int] = {}
        arguments: list[Any] = [
            GROUP,
            self.name,
            queue.reply_ttl_ms,
            self._next.entries_max,
            self._next.bytes_max,
            queue.shadow_entries_max,
            queue.dead_entries_max,
        ]
        for o in outcomes:
            index = clients.setdefault(o.reply_to, len(clients) + 1) if o.reply_to else 0
            size = len(o.entry.fields.get(b"request", b""))
            arguments += (o.entry.id, o.op, index, o.payload, o.counters, o.sample_key)
            arguments += (o.truth_key, o.truth, size, o.reason, o.message)
        names = [self.stream, self._bytes, self._next.stream, self._next.counter, keys.shadow, keys.dead]
        names += [keys.stats, *(keys.replies(client) for client in clients)]
        with driver_errors(self.settings.producer.url):
            return cast("list[bytes]", self._writes.run(self._finish, names, arguments))

    def release(self) -> int:
        """Hands everything still leased back at once; returns how many entries."""
        with driver_errors(self.settings.producer.url):
            return int(self._reads.run(self._release, [self.stream], [GROUP, self.name, _RELEASED]))

    def close(self) -> None:
        """Closes the connections; what is leased stays leased until it runs out."""
        self._reads.close()
        self._writes.close()
        self.client.close()

    def _reclaimed(self) -> list[Entry]:
        queue = self.settings.queue
        arguments = [GROUP, self.name, queue.lease_ms, queue.batch_max]
        rows = self._reads.run(self._reclaim, [self.stream], arguments)
        return [Entry(entry_id, _fields(flat), deliveries + 1) for entry_id, deliveries, flat in rows]

    def _read(self, block: bool) -> list[Entry]:
        queue = self.settings.queue
        wait = ("BLOCK", queue.block_ms) if block else ()
        command = ("XREADGROUP", "GROUP", GROUP, self.name, "COUNT", queue.batch_max, *wait)
        found = self._reads.call(*command, "STREAMS", self.stream, ">")
        # [[stream, [[id, [name, value, ...]], ...]]], or nothing when the wait ended
        return [Entry(entry_id, _fields(flat)) for entry_id, flat in found[0][1]] if found else []


def _chain(keys: Keys, queue: QueueSettings, stream: str) -> tuple[str, Next]:
    """The byte counter of a stream, and the next stream."""
    fallback = Next(keys.fallback, keys.fallback_bytes, queue.fallback_entries_max, queue.fallback_bytes_max)
    secondary = Next(
        keys.secondary, keys.secondary_bytes, queue.secondary_entries_max, queue.secondary_bytes_max
    )
    if stream == keys.secondary:
        return keys.secondary_bytes, secondary._replace(entries_max=0)
    if stream == keys.fallback:
        return keys.fallback_bytes, secondary
    return keys.requests_bytes, fallback


def load(name: str) -> Script:
    """The script `lua/<name>.lua` of this room."""
    return Script(script_text("workers", name))


def _fields(flat: list[bytes] | None) -> dict[bytes, bytes]:
    """Names and values in turn; None when the entry was deleted under its lease."""
    return dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {}
