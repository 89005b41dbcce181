"""The counters of the stats hash.

Producers count what they submit, so that they can write anything to this hash: a name that is not of
the form of ours is left out, and a hash with far too many names is read for the totals alone.
"""

from __future__ import annotations

import re
from typing import cast

import redis

from ops.health.counts import COUNTS
from producer.keys import Keys

#: Many times what the workers of all versions write.
NAMES_MAX = 1_000
_OURS = re.compile(rb"[A-Za-z0-9_.:/@+-]{1,120}")
#: Those that are there from the beginning.
TOTALS = tuple(dict.fromkeys(field for count in COUNTS for field in count.fields))


def read_counters(client: redis.Redis, keys: Keys) -> dict[str, int]:
    """Counts since the first request, by name, sorted; none when something else has the hash's name."""
    try:
        if client.hlen(keys.stats) > NAMES_MAX:
            values = cast("list[bytes | None]", client.hmget(keys.stats, list(TOTALS)))
            pairs = zip(TOTALS, values, strict=True)
            found = {name.encode(): value for name, value in pairs if value is not None}
        else:
            found = cast("dict[bytes, bytes]", client.hgetall(keys.stats))
    except redis.ResponseError:
        return {}
    return {
        name.decode("utf-8", "replace"): int(value)
        for name, value in sorted(found.items())
        if _OURS.fullmatch(name) and re.fullmatch(rb"-?\d{1,19}", value)
    }
