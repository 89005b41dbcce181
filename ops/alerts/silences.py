"""Silences: alerts that they match are evaluated and shown, and not told, for a while."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import cast

import redis

from ops.alerts.alert import Alert, readable
from producer.keys import Keys

#: More than this nobody keeps in view.
SILENCES_MAX = 200
#: Nothing is silenced for good: what should never be told should not be a rule.
SILENCE_MS_MAX = 30 * 24 * 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """A selection of alerts that are held back, until when, why and by whom.

    Attributes:
        alert: Id of one alert; else "", and the next three say which.
        rule, model, lane: Names that must be equal; "" is anything.
    """

    id: str = field(default_factory=lambda: secrets.token_hex(4))
    until_ms: int
    made_ms: int
    reason: str
    author: str
    alert: str = ""
    rule: str = ""
    model: str = ""
    lane: str = ""

    def matches(self, alert: Alert, now_ms: int) -> bool:
        """True if it holds this alert back now."""
        if now_ms >= self.until_ms:
            return False
        if self.alert:
            return self.alert == alert.id
        wanted = ((self.rule, alert.rule), (self.model, alert.model), (self.lane, alert.lane))
        return all(one in ("", other) for one, other in wanted)


def silence_of(alert: Alert, silences: Iterable[Silence], now_ms: int) -> str:
    """Returns the id of the silence that holds longest, or ""."""
    found = [one for one in silences if one.matches(alert, now_ms)]
    return max(found, key=lambda one: one.until_ms).id if found else ""


def silences(client: redis.Redis, keys: Keys, now_ms: int) -> list[Silence]:
    """Returns the silences in force; the one that ends first comes first."""
    stored = cast("dict[bytes, bytes]", client.hgetall(keys.alerts_prefix + "silences"))
    found = [one for one in readable(stored.values(), Silence) if one.until_ms > now_ms]
    return sorted(found, key=lambda one: one.until_ms)


def add_silence(client: redis.Redis, keys: Keys, silence: Silence) -> bool:
    """Stores it, and drops those that have ended; False when `SILENCES_MAX` are in force."""
    key, left = keys.alerts_prefix + "silences", {one.id for one in silences(client, keys, silence.made_ms)}
    ended = [
        name for name in cast("list[bytes]", client.hkeys(key)) if name.decode("utf-8", "replace") not in left
    ]
    if len(left) >= SILENCES_MAX:
        return False
    with client.pipeline(transaction=True) as pipe:
        if ended:
            pipe.hdel(key, *ended)
        pipe.hset(key, silence.id, json.dumps(asdict(silence)))
        pipe.pexpire(key, SILENCE_MS_MAX)
        pipe.execute()
    return True


def end_silence(client: redis.Redis, keys: Keys, name: str) -> bool:
    """Ends it; False when there is none of this id."""
    return bool(client.hdel(keys.alerts_prefix + "silences", name))
