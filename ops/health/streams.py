"""The streams of a queue: what waits, for how long, what is leased to nobody, and the dead letters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import redis

from ops.health.results import FAILURE, WARNING, CheckResult, failure, ok
from producer.keys import GROUP, Keys
from workers.settings import QueueSettings

#: An entry older than this is not being served.
AGE_MS_MAX = 10_000
#: A lease is taken over within a quarter of itself once it ran out, by whoever reads; the default is
#: three seconds.
STALE_MS = 30_000
_COUNTED_MAX = 1_000
_LETTERS_READ_MAX = 100
RECENT_MS = 600_000
#: So many dead letters within `RECENT_MS` are an incident and not an accident.
GROWTH_MAX = 20
#: From this share of the cap on, the oldest dead letters will soon be dropped unseen.
NEARLY_FULL = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """One stream.

    Attributes:
        entries: Waiting or leased.    leased: Of those, leased.
        payload_bytes: Of those, as counted; None where nobody counts.
        oldest_age_ms: Of the oldest entry, by the server's clock; None when empty.
        stale: Leased, and not renewed for `STALE_MS`; a thousand at most are counted.
    """

    entries: int
    leased: int
    payload_bytes: int | None
    oldest_age_ms: int | None
    stale: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFacts:
    """The dead letters.

    Attributes:
        reasons: Of the newest hundred.
        recent: Of the newest hundred, those of the last ten minutes.
        cap: Most that are kept.
    """

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
        size = cast("bytes | None", client.get(counter)) if counter else None
    except redis.ResponseError:  # something else has its name: ops/health/keys.py says so
        return StreamFacts(entries=0, leased=0, payload_bytes=None, oldest_age_ms=None)
    leased, stale = 0, 0
    try:
        leased = cast("dict[str, int]", client.xpending(stream, GROUP))["pending"]
        if leased:
            rows = client.xpending_range(stream, GROUP, "-", "+", _COUNTED_MAX, idle=STALE_MS)
            stale = len(cast("list[Any]", rows))
    except redis.ResponseError:  # no such stream or group yet: no worker was ever here
        pass
    return StreamFacts(
        entries=client.xlen(stream),
        leased=leased,
        payload_bytes=_number(size) if counter else None,
        oldest_age_ms=max(now_ms - int(oldest[0][0].partition(b"-")[0]), 0) if oldest else None,
        stale=stale,
    )


def _number(text: bytes | None) -> int | None:
    try:
        return int(text or b"0")
    except ValueError:
        return None


def read_letters(client: redis.Redis, keys: Keys, now_ms: int) -> LetterFacts:
    """Counts the dead letters, and reads the newest hundred."""
    try:
        rows = cast("list[Any]", client.xrevrange(keys.dead, count=_LETTERS_READ_MAX))
    except redis.ResponseError:  # something else has its name: ops/health/keys.py says so
        return LetterFacts()
    return LetterFacts(
        entries=cast(Any, client.xlen(keys.dead)),
        reasons=Counter(fields.get(b"reason", b"?").decode("utf-8", "replace") for _, fields in rows),
        recent=sum(0 <= now_ms - int(name.partition(b"-")[0]) < RECENT_MS for name, _ in rows),
    )


def check(streams: dict[str, StreamFacts]) -> list[CheckResult]:
    """One result a stream, and one for all leases."""
    results = [_flow(name, stream) for name, stream in streams.items()]
    stale = ", ".join(f"{stream.stale} on {name}" for name, stream in streams.items() if stream.stale)
    if not stale:
        return [*results, ok("leases", f"none older than {STALE_MS // 1000} s")]
    text = f"not renewed for {STALE_MS // 1000} s, and nobody takes them over: {stale}; are workers reading?"
    return [*results, failure("leases", text)]


def _flow(name: str, stream: StreamFacts) -> CheckResult:
    age_ms = stream.oldest_age_ms
    if age_ms is None or age_ms <= AGE_MS_MAX or name in ("shadow", "truths"):
        return ok(f"{name} stream", f"{stream.entries} waiting, {stream.leased} of them leased")
    text = (
        f"the oldest of {stream.entries} entries waits for {age_ms / 1000:.0f} s; add workers, see their logs"
    )
    return failure(f"{name} stream", text)


def check_letters(letters: LetterFacts) -> CheckResult:
    """Any dead letter is a warning, and a growing number of them a failure."""
    if not letters.entries:
        return ok("dead letters", "none")
    reasons = ", ".join(f"{count} {reason}" for reason, count in letters.reasons.items())
    text = f"{letters.entries} ({reasons}); `amn dlq list` shows them"
    level = WARNING
    if letters.recent >= GROWTH_MAX:
        many = f"{letters.recent} or more" if letters.recent == _LETTERS_READ_MAX else str(letters.recent)
        level, text = FAILURE, f"{many} new in {RECENT_MS // 60_000} minutes, of {text}"
    if letters.entries >= NEARLY_FULL * letters.cap:
        text += f"; at {letters.cap} the oldest are dropped: requeue or purge"
    return CheckResult(level, "dead letters", text)
