"""`amn doctor --repair`: makes the keys of a queue what they should be, without losing what waits."""

from __future__ import annotations

from secrets import token_hex
from typing import Any, cast

import redis

from ops.counters import TOTALS
from ops.health import integrity
from producer.keys import GROUP, Keys
from producer.settings import ProducerSettings
from producer.transport.connection import script_text

#: A dead letter has the most: eight names and their values.
_WORDS_MAX = 64


def repair(client: redis.Redis, settings: ProducerSettings) -> list[str]:
    """Mends every key that `integrity.look` names; returns what was done, a sentence each."""
    keys, done = Keys(settings.queue), []
    seconds, micros = client.time()
    wrong = integrity.look(client, keys, seconds * 1000 + micros // 1000)
    for key in wrong:
        if key == keys.stats:
            done.append(_stats(client, key))
        elif key in keys.counters:
            stream = keys.places[keys.counters.index(key)]
            size = cast(int, client.register_script(script_text("ops", "recount"))(keys=[stream, key]))
            done.append(f"{key} was counted anew: {size:,} bytes")
        else:
            done.append(_stream(client, keys, key))
    return done


def _stream(client: redis.Redis, keys: Keys, key: str) -> str:
    names, group, seen, place = [key, f"{key}:aside:{token_hex(8)}"], GROUP, "", ""
    if key in keys.places:
        number = keys.places.index(key)
        names.append(keys.counters[number])
        seen, place = keys.seen_prefix, str(number + 1)
    elif key not in (keys.shadow, keys.truths):
        group = ""
    script = client.register_script(script_text("ops", "repair"))
    moved = cast(int, script(keys=names, args=[group, seen, place, _WORDS_MAX]))
    if moved < 0:
        return f"{key} was no stream: what had its name is gone, and a stream was made"
    return f"{key} was made anew: {moved:,} entries were kept, in order; what was leased waits again"


def _stats(client: redis.Redis, key: str) -> str:
    kept: dict[str, bytes] = {}
    if cast(bytes, client.type(key)) == b"hash":
        values = cast("list[bytes | None]", client.hmget(key, list(TOTALS)))
        kept = {name: value for name, value in zip(TOTALS, values, strict=True) if value is not None}
    with client.pipeline(transaction=True) as pipe:
        pipe.delete(key)
        if kept:
            pipe.hset(key, mapping=cast(Any, kept))
        pipe.execute()
    return f"{key} was made anew with the {len(kept)} totals that it held; counting by name begins again"
