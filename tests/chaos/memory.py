"""What the server holds: streams, leases, counters, and memory by family of keys."""

from __future__ import annotations

import contextlib
import time
from typing import Any, cast

import redis

from producer.keys import GROUP, Keys

#: Families that keep something on purpose, each with its bound; the rest must go away.
KEPT = {
    "dead": "dead letters, capped in number",
    "stats": "counters, one field a name",
    "gate": "the budget that all workers share, and the state of each fallback",
    "drift:half": "sampled predictions that wait for their truth, capped, 2 h",
    "drift:exemplars": "examples for the drift report, 64 MiB at most, 48 h",
    "drift:minute": "sums by the minute, 50 h",
    "drift:minutes": "index of those",
}
#: Families that expire by themselves within seconds or with their client.
PASSING = ("seen", "replies", "workers")


def leftovers(client: redis.Redis, keys: Keys) -> dict[str, int]:
    """Entries, leases and bytes that are still waiting; empty when the queue is."""
    found: dict[str, int] = {}
    for stream in (*keys.places, keys.shadow):
        name = stream.partition("}:")[2]
        found[f"{name} entries"] = int(cast(int, client.xlen(stream)))
        with contextlib.suppress(redis.ResponseError):  # no stream, no group
            found[f"{name} leases"] = client.xpending(stream, GROUP)["pending"]
    for counter in keys.counters:
        found[counter.partition("}:")[2]] = int(cast(Any, client.get(counter)) or 0)
    return {name: count for name, count in found.items() if count}


def await_empty(client: redis.Redis, keys: Keys, limit_s: float) -> dict[str, int]:
    """Waits until nothing is left over and no id is remembered; returns what still is."""
    give_up_s = time.monotonic() + limit_s
    while True:
        left = leftovers(client, keys)
        remembered = sum(1 for _ in client.scan_iter(match=keys.seen_prefix + "*", count=5000))
        replies = list(client.scan_iter(match=keys.replies_prefix + "*", count=5000))
        if not (left or remembered or replies) or time.monotonic() > give_up_s:
            return left | ({"seen": remembered} if remembered else {}) | {key.decode(): 1 for key in replies}
        time.sleep(0.25)


def snapshot(client: redis.Redis) -> dict[str, Any]:
    """Bytes in use, and by family of keys."""
    families: dict[str, int] = {}
    names = list(client.scan_iter(count=2000))
    for first in range(0, len(names), 500):
        part = names[first : first + 500]
        with client.pipeline(transaction=False) as pipe:
            for name in part:
                pipe.memory_usage(name, samples=0)
            for name, used in zip(part, pipe.execute(), strict=True):
                family = _family(name.decode())
                families[family] = families.get(family, 0) + int(used or 0)
    used = int(client.info("memory")["used_memory"])
    kept = sum(families.get(family, 0) for family in (*KEPT, *PASSING))
    return {"used": used, "flat": used - kept, "families": families, "keys": len(names)}


def _family(name: str) -> str:
    parts = name.split("}:", 1)[-1].split(":")
    return ":".join(parts[:2]) if parts[0] in ("drift", "bytes") else parts[0]
