"""Silences: what is evaluated and shown, and not told, for a while."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, cast

import redis

from ops.alerts.alert import Alert, readable
from producer.keys import Keys
from producer.transport.connection import script_text

#: More than this nobody keeps in view.
SILENCES_MAX = 200
#: Nothing is silenced for good: what should never be told should not be a rule.
SILENCE_MS_MAX = 30 * 24 * 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """A selection of alerts that are held back, until when, why and by whom.

    Attributes:
        id: Name.    until_ms, made_ms: Epoch milliseconds.
        alert: Id of one alert; else "", and the next three say which.
        rule, model, lane: What must be equal; "" is anything.
    """

    id: str
    until_ms: int
    made_ms: int
    reason: str
    author: str
    alert: str = ""
    rule: str = ""
    model: str = ""
    lane: str = ""

    @classmethod
    def new(cls, **values: Any) -> Self:
        """With an id of its own."""
        return cls(id=secrets.token_hex(4), **values)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Reads the stored form; fields that a later version added are left out."""
        found = cls(**{name: stored[name] for name in cls.__slots__ if name in stored})
        if not isinstance(found.until_ms, int):
            raise ValueError(f"no silence of this version: {found.id!r:.80}")
        return found

    def matches(self, alert: Alert, now_ms: int) -> bool:
        """Says whether it holds this alert back now."""
        if now_ms >= self.until_ms:
            return False
        if self.alert:
            return self.alert == alert.id
        wanted = ((self.rule, alert.rule), (self.model, alert.model), (self.lane, alert.lane))
        return all(one in ("", other) for one, other in wanted)


def silence_of(alert: Alert, silences: Iterable[Silence], now_ms: int) -> str:
    """Id of the silence that holds longest, or ""."""
    found = [one for one in silences if one.matches(alert, now_ms)]
    return max(found, key=lambda one: one.until_ms).id if found else ""


def parse_silences(stored: Mapping[bytes, bytes]) -> list[Silence]:
    """Returns the silences of the stored hash; the one that ends first comes first."""
    found = readable(stored.values(), Silence.from_json)
    return sorted(found, key=lambda one: one.until_ms)


def silences(client: redis.Redis, keys: Keys, now_ms: int) -> list[Silence]:
    """Returns the silences in force."""
    stored = cast("dict[bytes, bytes]", client.hgetall(silences_key(keys)))
    return [one for one in parse_silences(stored) if one.until_ms > now_ms]


def add_silence(client: redis.Redis, keys: Keys, silence: Silence) -> bool:
    """Stores it; False when `SILENCES_MAX` are in force."""
    add = client.register_script(script_text("ops.alerts", "silence"))
    text = json.dumps(asdict(silence))
    args: list[str | int] = [silence.id, text, silence.made_ms, SILENCES_MAX, SILENCE_MS_MAX]
    return bool(add(keys=[silences_key(keys)], args=args))


def end_silence(client: redis.Redis, keys: Keys, name: str) -> bool:
    """Ends it; False when there is none of this id."""
    return bool(client.hdel(silences_key(keys), name))


def silences_key(keys: Keys) -> str:
    """Returns the key of the silences."""
    return keys.alerts_prefix + "silences"
