"""The backlog in seconds: how long what waits now takes the workers that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import redis

from ops.clock import server_now_ms
from ops.health import streams, workers
from ops.health.streams import SERVED, StreamFacts
from ops.health.workers import WorkerFacts
from producer.keys import Keys

#: Kinds, and streams that the same workers of it serve.
_TOGETHER = [
    (kind, group)
    for kind, names in SERVED.items()
    for group in ([(name,) for name in names] if kind == "fallback" else [names])
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The work that waits in a stream, and for how long it will.

    `backlog_s` is `ahead` over `ended_per_s`; by Little's law this is how long a request that comes now
    waits, also when the workers keep up and something waits for a moment. It is 0 when nothing waits.
    While something waits and no worker has ended anything for ten seconds (there is none, or all are
    stuck), no rate says when it will be served: then it is the age of the oldest entry, which grows
    second by second.

    Attributes:
        kind: Kind of worker that serves the stream.
        waiting: Entries that no worker has leased; all of them while no worker lives.
        ahead: Those, and what waits in the streams that the same workers serve first.
        workers: Workers that serve it and make progress.
        ended_per_s: Entries that these end a second, lately, of all their streams.
        busy_ratio: Share of the last half minute in which these worked, 0 to 1.
        backlog_s: Seconds until what waits now is served.
    """

    kind: str
    waiting: int
    ahead: int
    workers: int
    ended_per_s: float
    busy_ratio: float
    backlog_s: float


def backlogs(found: Mapping[str, StreamFacts], alive: Sequence[WorkerFacts]) -> dict[str, Backlog]:
    """The backlog of each stream that was read, by its display name."""
    measured: dict[str, Backlog] = {}
    for kind, served in _TOGETHER:
        names = [name for name in served if name in found]
        ahead, oldest_s = 0, 0.0
        working = [one for one in alive if _serves(one, kind, names) and not one.stuck]
        rate = sum(one.ended_per_s for one in working)
        for name in names:
            stream = found[name]
            waiting = stream.entries - (stream.leased if working else 0)
            ahead += waiting
            oldest_s = max(oldest_s, (stream.oldest_age_ms or 0) / 1000 if waiting else 0.0)
            measured[name] = Backlog(
                kind=kind,
                waiting=waiting,
                ahead=ahead,
                workers=len(working),
                ended_per_s=round(rate, 3),
                busy_ratio=round(sum(one.busy_ratio for one in working) / max(len(working), 1), 3),
                backlog_s=round(ahead / rate if rate else oldest_s, 3),
            )
    return measured


def _serves(worker: WorkerFacts, kind: str, names: Sequence[str]) -> bool:
    # A worker of an earlier version does not say what it reads: it is of the first place of its kind.
    return worker.kind == kind and (not worker.streams or bool({*names} & {*worker.streams.split()}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The load of one kind of worker: the largest of its streams."""

    backlog_s: float
    busy_ratio: float
    workers: int


def loads(measured: Mapping[str, Backlog]) -> dict[str, Load]:
    """The load of each kind, as an autoscaler asks for it: a backlog, or busy workers, want more of them."""
    by_kind: dict[str, list[Backlog]] = {}
    for one in measured.values():
        by_kind.setdefault(one.kind, []).append(one)
    return {
        kind: Load(
            backlog_s=max(one.backlog_s for one in mine),
            busy_ratio=max(one.busy_ratio for one in mine),
            workers=max(one.workers for one in mine),
        )
        for kind, mine in by_kind.items()
    }


def read(client: redis.Redis, keys: Keys) -> dict[str, Any]:
    """Returns what an autoscaler reads, as JSON: the loads by kind, and the backlogs by stream."""
    now_ms = server_now_ms(client)
    found = backlogs(streams.read(client, keys, now_ms), workers.read(client, keys, now_ms))
    return {
        "queue": keys.queue,
        "at_ms": now_ms,
        "kinds": {kind: asdict(one) for kind, one in loads(found).items()},
        "streams": {name: asdict(one) for name, one in found.items()},
    }
