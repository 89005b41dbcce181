"""The streams of a queue: what waits, for how long, what is leased to nobody, and the dead letters."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import redis

from producer.keys import GROUP, Keys
from workers.settings import QueueSettings

#: A lease is taken over within a quarter of itself once it ran out, by whoever reads; the default is
#: three seconds.
STALE_MS = 30_000
_STALE_MAX = 1_000
LETTERS_READ_MAX = 100
RECENT_MS = 600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """One stream.

    Attributes:
        entries, leased: Entries that wait or are leased, and those that are leased.
        payload_bytes: Their payload, as counted; None where nobody counts.
        oldest_age_ms: Age of the oldest entry, by the server's clock; None when empty.
        stale: Leased entries not renewed for `STALE_MS`; a thousand at most are counted.
    """

    entries: int
    leased: int
    payload_bytes: int | None
    oldest_age_ms: int | None
    stale: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFacts:
    """The dead letters: reasons of the newest hundred, and how many of those are of the last ten minutes."""

    entries: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    recent: int = 0
    cap: int = QueueSettings().dead_entries_max


def read(client: redis.Redis, keys: Keys, now_ms: int) -> dict[str, StreamFacts]:
    """Every stream, by its display name."""
    counters: dict[str, str] = dict(zip(keys.places, keys.counters, strict=True))
    return {
        stream.partition("}:")[2]: _read(client, stream, counters.get(stream), now_ms)
        for stream in (*keys.places, keys.shadow, keys.truths)
    }


def _read(client: redis.Redis, stream: str, counter: str | None, now_ms: int) -> StreamFacts:
    try:
        oldest = cast("list[tuple[bytes, Any]]", client.xrange(stream, count=1))
        size = cast("bytes | None", client.get(counter)) or b"0" if counter else b""
    except redis.ResponseError:  # something else has its name: ops/health/keys.py says so
        return StreamFacts(entries=0, leased=0, payload_bytes=None, oldest_age_ms=None)
    leased, stale = 0, 0
    with contextlib.suppress(redis.ResponseError):  # no such stream or group yet: no worker was ever here
        leased = cast("dict[str, int]", client.xpending(stream, GROUP))["pending"]
        if leased:
            rows = client.xpending_range(stream, GROUP, "-", "+", _STALE_MAX, idle=STALE_MS)
            stale = len(cast("list[Any]", rows))
    return StreamFacts(
        entries=client.xlen(stream),
        leased=leased,
        payload_bytes=int(size) if size.isdigit() else None,
        oldest_age_ms=max(now_ms - int(oldest[0][0].partition(b"-")[0]), 0) if oldest else None,
        stale=stale,
    )


def read_letters(client: redis.Redis, keys: Keys, now_ms: int) -> LetterFacts:
    """Counts the dead letters, and reads the newest hundred."""
    try:
        rows = cast("list[Any]", client.xrevrange(keys.dead, count=LETTERS_READ_MAX))
    except redis.ResponseError:  # something else has its name: ops/health/keys.py says so
        return LetterFacts()
    return LetterFacts(
        entries=cast(Any, client.xlen(keys.dead)),
        reasons=Counter(fields.get(b"reason", b"?").decode("utf-8", "replace") for _, fields in rows),
        recent=sum(0 <= now_ms - int(name.partition(b"-")[0]) < RECENT_MS for name, _ in rows),
    )
