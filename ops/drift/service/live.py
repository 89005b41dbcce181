"""Facts about the service now, which the table's conditions look at and the metrics show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import redis

from ops.clock import server_now_ms
from ops.health import server, streams, workers
from ops.health.counters import read_counters
from producer.keys import Keys

KINDS = ("amn", "fallback", "shadow")
#: How a request ends, once; and how one comes in.
ENDS = ("answered", "failed", "dead", "cancelled")
COMES = ("accepted:high", "accepted:normal", "accepted:low", "replayed")
#: Name under which the judge keeps `Live.lost` beside the counters.
LOST = "lost_requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """One look at a queue and its server.

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


def look(client: redis.Redis, keys: Keys) -> Live:
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
