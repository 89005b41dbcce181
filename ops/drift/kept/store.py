"""Reads the shadow worker's minutes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import redis

from ops.drift.measures.window import total
from producer.keys import Keys

#: Minutes fetched in one round trip.
_CHUNK = 120


def read_minutes(
    client: redis.Redis, keys: Keys, now_ms: int, hours: int = 24
) -> Iterator[tuple[int, dict[str, int]]]:
    """Yields `(epoch minute, sums)` of the window that ends with the minute of `now_ms`, in order.

    Args:
        client: Bytes client (`decode_responses=False`).
        keys: Of the queue.
        now_ms: Epoch milliseconds, best by the server's clock (`server_now_ms`), which also stamps
            the minutes.
        hours: Length of the window; minutes are kept for 50 hours.
    """
    last = now_ms // 60_000
    return minutes_between(client, keys, last - 60 * hours + 1, last)


def minutes_between(
    client: redis.Redis, keys: Keys, first: int, last: int
) -> Iterator[tuple[int, dict[str, int]]]:
    """Works like `read_minutes`, for the minutes `first` to `last`, both included."""
    found = [
        int(minute) for minute in cast("list[bytes]", client.zrangebyscore(keys.drift_minutes, first, last))
    ]
    for start in range(0, len(found), _CHUNK):
        some = found[start : start + _CHUNK]
        with client.pipeline(transaction=False) as pipe:
            for minute in some:
                pipe.hgetall(f"{keys.drift_minute_prefix}{minute}")
            rows = cast("list[dict[bytes, bytes]]", pipe.execute())
        for minute, fields in zip(some, rows, strict=True):
            yield minute, {field.decode(): int(amount) for field, amount in fields.items()}


def read_window(client: redis.Redis, keys: Keys, now_ms: int, hours: int = 24) -> dict[str, int]:
    """The sums of the window; arguments as `read_minutes`. Empty when nothing was scored."""
    return total(sums for _, sums in read_minutes(client, keys, now_ms, hours))
