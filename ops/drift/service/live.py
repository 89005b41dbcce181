"""The facts about the service that the rules judge and the metrics show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from ops.clock import BLOCK_MIN
from ops.health import server, streams, workers
from ops.health.counters import read_counters
from producer.keys import Keys

KINDS = ("amn", "fallback", "shadow")
#: Counters of how a request ends, once, and of how one comes in.
ENDS = ("answered", "failed", "dead", "cancelled")
COMES = ("accepted:high", "accepted:normal", "accepted:low", "replayed")
#: Contexts that AMN decided, and those of them that went to a fallback. As the budget does, they count the
#: contexts of a batch one by one.
DECIDED = ("answered", "failed", "dead", "batch:extra")
ESCALATED = ("escalated", "batch:extra:escalated")
#: Name under which the lost requests are kept beside the counters.
LOST = "lost_requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A queue and its server at one moment, and its counters at the ends of past blocks.

    Attributes:
        now_ms: Server's clock.
        counters: Since the first request; and `LOST`, the requests that have not ended and wait
            nowhere: nobody will ever end them.
        unanswered: Requests that were accepted and have not ended.
        counts: The counters at the ends of past blocks.
        canary: By model, the last result of the frozen set (docs/drift-data.md).
    """

    now_ms: int
    counters: Mapping[str, int] = field(default_factory=dict)
    unanswered: int = 0
    server: server.ServerFacts = field(default_factory=server.ServerFacts)
    streams: Mapping[str, streams.StreamFacts] = field(default_factory=dict)
    workers: tuple[workers.WorkerFacts, ...] = ()
    counts: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    canary: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def working(self, kind: str) -> int:
        """Workers of a kind that live and make progress."""
        return sum(worker.kind == kind and not worker.stuck for worker in self.workers)

    def age_s(self, *names: str) -> float:
        """Returns the age of the oldest entry in these streams; 0 when they are empty."""
        ages = (found.oldest_age_ms or 0 for name in names if (found := self.streams.get(name)))
        return max(ages, default=0) / 1000

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
        past = (self.counts.get(number, {}) for number in range(open_block - blocks - 1, open_block))
        then = next((counts[name] for counts in past if name in counts), None)
        return None if then is None else max(self.counters.get(name, 0) - then, 0)


def read_service(client: redis.Redis, keys: Keys) -> Service:
    """Reads the server; changes nothing."""
    about, now_ms = server.read(client, with_limits=False)
    with client.pipeline(transaction=True) as pipe:  # all of one moment
        pipe.hmget(keys.stats, [*COMES, *ENDS])
        for stream in keys.places:
            pipe.xlen(stream)
        counts, *lengths = pipe.execute(raise_on_error=False)
    unanswered, lost = 0, 0
    # If something else has the name of one of them, ops/health/keys.py says so.
    if not any(isinstance(one, Exception) for one in (counts, *lengths)):
        numbers = [int(value) if value and value.lstrip(b"-").isdigit() else 0 for value in counts]
        unanswered = max(sum(numbers[: len(COMES)]) - sum(numbers[len(COMES) :]), 0)
        lost = max(unanswered - sum(lengths), 0)
    return Service(
        now_ms=now_ms,
        counters={**read_counters(client, keys), LOST: lost},
        unanswered=unanswered,
        server=about,
        streams=streams.read(client, keys, now_ms),
        workers=tuple(workers.read(client, keys, now_ms)),
    )
