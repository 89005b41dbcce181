"""The keys of a queue: what a stranger or a clock did to them, and how they are mended without a loss."""

from __future__ import annotations

from secrets import token_hex
from typing import Any, cast

import redis

from ops.health.counters import NAMES_MAX, TOTALS
from producer.keys import GROUP, Keys
from producer.messages import BATCH_BYTES_MAX
from producer.settings import ProducerSettings
from producer.transport.clock import time_ms
from producer.transport.connection import script_text

#: An id that is so far ahead of the server's clock was not made by it; or the clock was set back.
AHEAD_MS_MAX = 60_000
_LAST_MS = 2**64 - 1
_DAY_MS = 86_400_000
#: A dead letter has the most: eight names and their values.
_FIELDS_MAX = 64


def read(client: redis.Redis, keys: Keys, now_ms: int) -> dict[str, str]:
    """Finds what is wrong, by key."""
    streams = (*keys.places, keys.shadow, keys.truths, keys.dead, keys.alerts_prefix + "ended")
    found = {
        key: _other_type(client, key, "stream", "stream") or _ids(client, key, now_ms) for key in streams
    }
    for stream, counter in zip(keys.places, keys.counters, strict=True):
        if not found[stream]:
            found[counter] = _other_type(client, counter, "string", "number")
            found[counter] = found[counter] or _count(client, stream, counter)
    found[keys.stats] = _other_type(client, keys.stats, "hash", "hash of counters")
    if not found[keys.stats] and (names := client.hlen(keys.stats)) > NAMES_MAX:
        found[keys.stats] = f"has {names:,} names, most of them not ours"
    return {key: wrong for key, wrong in found.items() if wrong}


def repair(client: redis.Redis, settings: ProducerSettings) -> list[str]:
    """Mends every key that `read` names; returns what was done, a sentence each."""
    keys, done = Keys(settings.queue), []
    for key in read(client, keys, int(time_ms(client.time()))):
        if key == keys.stats:
            done.append(_mend_stats(client, key))
        elif key in keys.counters:
            stream = keys.places[keys.counters.index(key)]
            size = cast(int, client.register_script(script_text("ops", "recount"))(keys=[stream, key]))
            done.append(f"{key} was counted anew: {size:,} bytes")
        else:
            done.append(_mend_stream(client, keys, key))
    return done


def _other_type(client: redis.Redis, key: str, wanted: str, name: str) -> str:
    kind = cast(bytes, client.type(key)).decode()
    return "" if kind in (wanted, "none") else f"is a {kind}, and should be a {name}"


def _ids(client: redis.Redis, stream: str, now_ms: int) -> str:
    if not client.exists(stream):
        return ""
    last_ms = int(client.xinfo_stream(stream)["last-generated-id"].partition(b"-")[0])
    if last_ms == _LAST_MS:
        return "has used up its ids, and takes no entry any more"
    if last_ms - now_ms <= AHEAD_MS_MAX:
        return ""
    return (
        f"has ids {(last_ms - now_ms) / _DAY_MS:,.1f} days ahead of the server's clock, so that no age is "
        "known: somebody wrote one, or the clock was set back"
    )


def _count(client: redis.Redis, stream: str, counter: str) -> str:
    with client.pipeline(transaction=True) as pipe:
        pipe.get(counter)
        pipe.xlen(stream)
        text, entries = pipe.execute()
    try:
        count = int(text or b"0")
    except ValueError:
        return "is text, and should be a number"
    good = 0 <= count <= entries * BATCH_BYTES_MAX
    return "" if good else f"says {count:,} bytes for {entries:,} entries"


def _mend_stream(client: redis.Redis, keys: Keys, key: str) -> str:
    names, group, seen, stream_number = [key, f"{key}:aside:{token_hex(8)}"], GROUP, "", ""
    if key in keys.places:
        number = keys.places.index(key)
        names.append(keys.counters[number])
        seen, stream_number = keys.seen_prefix, str(number + 1)
    elif key not in (keys.shadow, keys.truths):
        group = ""
    script = client.register_script(script_text("ops", "repair"))
    moved = cast(int, script(keys=names, args=[group, seen, stream_number, _FIELDS_MAX]))
    if moved < 0:
        return f"{key} was no stream: what had its name is gone, and a stream was made"
    return f"{key} was made anew: {moved:,} entries were kept, in order; what was leased waits again"


def _mend_stats(client: redis.Redis, key: str) -> str:
    kept: dict[str, bytes] = {}
    if client.type(key) == b"hash":
        values = cast("list[bytes | None]", client.hmget(key, list(TOTALS)))
        kept = {name: value for name, value in zip(TOTALS, values, strict=True) if value is not None}
    with client.pipeline(transaction=True) as pipe:
        pipe.delete(key)
        if kept:
            pipe.hset(key, mapping=cast(Any, kept))
        pipe.execute()
    return f"{key} was made anew with the {len(kept)} totals that it held; counting by name begins again"
