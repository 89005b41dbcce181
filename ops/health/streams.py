"""The streams: what waits, for how long, and what is leased to nobody who works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import redis

from ops.health.findings import FAILURE, OK, Finding
from producer.keys import GROUP, Keys

#: An entry older than this is not being served.
AGE_MS_MAX = 10_000
#: A lease is taken over within a quarter of itself once it ran out, by whoever reads; the default is
#: three seconds.
STALE_MS = 30_000
_COUNTED_MAX = 1_000


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


def names(keys: Keys) -> dict[str, tuple[str, str | None]]:
    """Display name -> its stream and its byte counter."""
    found: dict[str, tuple[str, str | None]] = {
        stream.partition("}:")[2]: (stream, counter)
        for stream, counter in zip(keys.places, keys.counters, strict=True)
    }
    return found | {"shadow": (keys.shadow, None), "truths": (keys.truths, None)}


def look(client: redis.Redis, keys: Keys, now_ms: int) -> dict[str, StreamFacts]:
    """Every stream, by its display name."""
    return {name: _look(client, stream, counter, now_ms) for name, (stream, counter) in names(keys).items()}


def _look(client: redis.Redis, stream: str, counter: str | None, now_ms: int) -> StreamFacts:
    try:
        oldest = cast("list[tuple[bytes, Any]]", client.xrange(stream, count=1))
        size = client.get(counter) if counter else None
    except redis.ResponseError:  # something else has its name: ops/health/integrity.py says so
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
        payload_bytes=_number(cast("bytes | None", size)) if counter else None,
        oldest_age_ms=max(now_ms - int(oldest[0][0].partition(b"-")[0]), 0) if oldest else None,
        stale=stale,
    )


def _number(text: bytes | None) -> int | None:
    try:
        return int(text or b"0")
    except ValueError:
        return None


def judge(streams: dict[str, StreamFacts]) -> list[Finding]:
    """One finding per stream, and one for all leases."""
    findings = [_flow(name, stream) for name, stream in streams.items()]
    stale = {name: stream.stale for name, stream in streams.items() if stream.stale}
    if not stale:
        return [*findings, Finding(OK, "leases", f"none older than {STALE_MS // 1000} s")]
    where = ", ".join(f"{count} on {name}" for name, count in stale.items())
    text = f"not renewed for {STALE_MS // 1000} s, and nobody takes them over: {where}; are workers reading?"
    return [*findings, Finding(FAILURE, "leases", text)]


def _flow(name: str, stream: StreamFacts) -> Finding:
    age_ms = stream.oldest_age_ms
    if age_ms is None or age_ms <= AGE_MS_MAX or name in ("shadow", "truths"):
        return Finding(OK, f"{name} stream", f"{stream.entries} waiting, {stream.leased} of them leased")
    text = (
        f"the oldest of {stream.entries} entries waits for {age_ms / 1000:.0f} s; add workers, see their logs"
    )
    return Finding(FAILURE, f"{name} stream", text)
