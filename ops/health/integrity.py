"""Whether the queue's keys are what they should be: what somebody else, or a clock, did to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import redis

from ops.alerts.store import outbox_key
from ops.counters import NAMES_MAX
from ops.health.findings import FAILURE, OK, Finding
from producer.keys import Keys
from producer.protocol.wire import BATCH_BYTES_MAX

#: An id that is so far ahead of the server's clock was not made by it; or the clock was set back.
AHEAD_MS_MAX = 60_000
_LAST_MS = 2**64 - 1
_DAY_MS = 86_400_000


def look(client: redis.Redis, keys: Keys, now_ms: int) -> dict[str, str]:
    """What is wrong, by key."""
    found = {key: _stream(client, key, now_ms) for key in _streams(keys)}
    for stream, counter in zip(keys.places, keys.counters, strict=True):
        found[counter] = _counter(client, stream, counter) if not found[stream] else ""
    found[keys.stats] = _stats(client, keys.stats)
    return {key: wrong for key, wrong in found.items() if wrong}


def judge(wrong: Mapping[str, str]) -> list[Finding]:
    """One finding for each key that is wrong, or one good one."""
    advice = "`amn doctor --repair` mends it, and loses nothing that waits"
    findings = [Finding(FAILURE, "keys", f"{key} {what}; {advice}") for key, what in wrong.items()]
    return findings or [Finding(OK, "keys", "types, ids and counts as they should be")]


def _streams(keys: Keys) -> tuple[str, ...]:
    return *keys.places, keys.shadow, keys.truths, keys.dead, outbox_key(keys)


def _type(client: redis.Redis, key: str) -> str:
    return cast(bytes, client.type(key)).decode()


def _stream(client: redis.Redis, key: str, now_ms: int) -> str:
    kind = _type(client, key)
    if kind not in ("stream", "none"):
        return f"is a {kind}, and should be a stream"
    if kind == "none":
        return ""
    about = client.xinfo_stream(key)
    last_ms = int(about["last-generated-id"].partition(b"-")[0])
    ahead_ms = last_ms - now_ms
    if ahead_ms <= AHEAD_MS_MAX:
        return ""
    if last_ms == _LAST_MS:
        return "has used up its ids, and takes no entry any more"
    return (
        f"has ids {ahead_ms / _DAY_MS:,.1f} days ahead of the server's clock, so that no age is known: "
        "somebody wrote one, or the clock was set back"
    )


def _counter(client: redis.Redis, stream: str, counter: str) -> str:
    kind = _type(client, counter)
    if kind not in ("string", "none"):
        return f"is a {kind}, and should be a number"
    with client.pipeline(transaction=True) as pipe:
        pipe.get(counter)
        pipe.xlen(stream)
        text, entries = pipe.execute()
    try:
        count = int(text or b"0")
    except ValueError:
        return "is text, and should be a number"
    if 0 <= count <= entries * BATCH_BYTES_MAX:
        return ""
    return f"says {count:,} bytes for {entries:,} entries"


def _stats(client: redis.Redis, key: str) -> str:
    kind = _type(client, key)
    if kind not in ("hash", "none"):
        return f"is a {kind}, and should be a hash of counters"
    names = client.hlen(key) if kind == "hash" else 0
    return f"has {names:,} names, most of them not ours" if names > NAMES_MAX else ""
