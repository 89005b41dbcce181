"""The streams of a queue: what waits, for how long, and what is leased to nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis

from producer.keys import GROUP, Keys
from producer.transport.connection import script_text

#: A lease is taken over within a quarter of itself once it ran out, by whoever reads; the default is
#: three seconds.
STALE_MS = 30_000
_STALE_MAX = 1_000
#: By kind of worker, the display names of the streams that it serves, in the order of service. A fallback
#: worker serves one of its two.
SERVED = {
    "amn": ("requests:high", "requests", "requests:low"),
    "fallback": ("fallback", "fallback:secondary"),
    "shadow": ("shadow", "truths"),
}


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


def read(client: redis.Redis, keys: Keys, now_ms: int) -> dict[str, StreamFacts]:
    """Every stream, by its display name: two commands, however much waits."""
    names = (*keys.places, keys.shadow, keys.truths)
    script = client.register_script(script_text("ops", "streams"))
    rows = cast("list[list[Any]]", script(keys=names, args=[GROUP, STALE_MS, _STALE_MAX]))
    sizes = [*_texts(client, keys.counters), None, None]
    return {
        name.partition("}:")[2]: _facts(row, size, now_ms)
        for name, row, size in zip(names, rows, sizes, strict=True)
    }


def _texts(client: redis.Redis, names: Sequence[str]) -> list[bytes]:
    """The texts of string keys; "0" where there is none, and nothing of what is no string."""
    return [found or b"0" for found in cast("list[bytes | None]", client.mget(names))]


def _facts(row: list[Any], size: bytes | None, now_ms: int) -> StreamFacts:
    if not row:  # something else has its name: ops/health/keys.py says so
        return StreamFacts(entries=0, leased=0, payload_bytes=None, oldest_age_ms=None)
    entries, oldest, leased, stale = row
    return StreamFacts(
        entries=entries,
        leased=leased,
        payload_bytes=int(size) if size is not None and size.isdigit() else None,
        oldest_age_ms=max(now_ms - int(oldest.partition(b"-")[0]), 0) if oldest else None,
        stale=stale,
    )
