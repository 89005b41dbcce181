"""The facts about the service that the rules judge and the metrics show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from ops.clock import BLOCK_MIN, server_now_ms
from ops.health import server, streams, workers
from ops.health.counters import read_counters
from producer.keys import Keys

KINDS = ("amn", "fallback", "shadow")
#: Counters of how a request ends, once, and of how one comes in.
ENDS = ("answered", "failed", "dead", "cancelled")
COMES = ("accepted:high", "accepted:normal", "accepted:low", "replayed")
#: Name under which the judge keeps `Live.lost` beside the counters.
LOST = "lost_requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A queue and its server at one moment.

    Attributes:
        now_ms: Server's clock.
        counters: Since the first request.
        unanswered: Requests that were accepted and have not ended.
        lost: Of those, the ones that wait nowhere: nobody will ever end them.
    """

    now_ms: int
    counters: Mapping[str, int] = field(default_factory=dict)
    unanswered: int = 0
    lost: int = 0
    server: server.ServerFacts = field(default_factory=server.ServerFacts)
    streams: Mapping[str, streams.StreamFacts] = field(default_factory=dict)
    workers: tuple[workers.WorkerFacts, ...] = ()

    def working(self, kind: str) -> int:
        """Workers of a kind that live and make progress."""
        return sum(worker.kind == kind and not worker.stuck for worker in self.workers)

    def age_s(self, *names: str) -> float:
        """Returns the age of the oldest entry in these streams; 0 when they are empty."""
        ages = (found.oldest_age_ms or 0 for name in names if (found := self.streams.get(name)))
        return max(ages, default=0) / 1000

    def size(self, *names: str) -> tuple[int, int]:
        """Entries and payload bytes in these streams."""
        found = [self.streams[name] for name in names if name in self.streams]
        return sum(one.entries for one in found), sum(one.payload_bytes or 0 for one in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The counters now and at the ends of past blocks, and what else an evaluation knows.

    Attributes:
        now_ms: Server's clock.
        counters: Since the first request.
        counts: The same at the ends of past blocks.
        shadow_age_ms: Age of the oldest shadow entry; None when there is none.
        canary: By model, the last result of the frozen set (docs/drift-data.md).
    """

    now_ms: int
    counters: Mapping[str, int]
    counts: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    shadow_age_ms: int | None = None
    canary: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def since(self, end_block: int, blocks: int, names: Sequence[str]) -> int | None:
        """Returns the growth of these counters since `blocks` before `end_block`; None when not known.

        The growth of a name after a minus is taken off. Where nobody counted at that moment, or the
        clock skipped it, a moment within twice the window has to do.
        """
        wanted = end_block - blocks - 1
        known = [number for number in range(wanted, wanted - blocks - 1, -1) if number in self.counts]
        if not known:
            return None
        then = self.counts[known[0]]
        grown = 0
        for signed in names:
            name = signed.removeprefix("-")
            now, before = self.counters.get(name, 0), then.get(name, 0)
            more = now - before if now >= before else now  # the server was emptied meanwhile
            grown += more if name == signed else -more
        return max(grown, 0)

    def recent(self, blocks: int, names: Sequence[str]) -> int | None:
        """Growth in the last `blocks`; of a younger service, since the first block that is known."""
        open_block = self.now_ms // 60_000 // BLOCK_MIN
        grown = (self.since(open_block, back, names) for back in range(blocks, -1, -1))
        return next((found for found in grown if found is not None), None)

    def risen(self, blocks: int, name: str) -> int | None:
        """Returns the rise in the last blocks of a number that may also fall; None if not noted then."""
        open_block = self.now_ms // 60_000 // BLOCK_MIN
        for number in range(open_block - blocks - 1, open_block):
            if name in self.counts.get(number, {}):
                return max(self.counters.get(name, 0) - self.counts[number][name], 0)
        return None


def read_live(client: redis.Redis, keys: Keys) -> Live:
    """Reads the server; changes nothing."""
    try:
        about, now_ms = server.read(client, with_limits=False)
    except redis.ResponseError:  # it does not tell this user its figures
        about, now_ms = server.ServerFacts(), server_now_ms(client)
    unanswered, lost = _accounts(client, keys)
    return Live(
        now_ms=now_ms,
        counters=read_counters(client, keys),
        unanswered=unanswered,
        lost=lost,
        server=about,
        streams=streams.read(client, keys, now_ms),
        workers=tuple(workers.read(client, keys, now_ms)),
    )


def _accounts(client: redis.Redis, keys: Keys) -> tuple[int, int]:
    """Requests without an end, and those of them that wait nowhere; all of one moment."""
    with client.pipeline(transaction=True) as pipe:
        pipe.hmget(keys.stats, [*COMES, *ENDS])
        for stream in keys.places:
            pipe.xlen(stream)
        found = pipe.execute(raise_on_error=False)
    if any(isinstance(one, Exception) for one in found):
        return 0, 0  # something else has the name of one of them: ops/health/keys.py says so
    counts, *lengths = found
    numbers = [int(value) if value and value.lstrip(b"-").isdigit() else 0 for value in counts]
    unanswered = max(sum(numbers[: len(COMES)]) - sum(numbers[len(COMES) :]), 0)
    return unanswered, max(unanswered - sum(lengths), 0)
