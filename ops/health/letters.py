"""The dead letters: how many are kept, and the newest without what they carry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import redis

from ops.deadletters import Letter, named
from producer.keys import Keys
from producer.transport.connection import script_text
from workers.settings import QueueSettings

#: Newest letters that are looked at, and the most bytes of them, payloads included.
LETTERS_READ_MAX, _BYTES_MAX = 100, 8 << 20
RECENT_MS = 600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFacts:
    """The dead letters: reasons of the newest hundred, and how many of those are of the last ten minutes."""

    entries: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    recent: int = 0
    cap: int = QueueSettings().dead_entries_max

    @classmethod
    def of(cls, entries: int, newest: Sequence[Letter], now_ms: int) -> LetterFacts:
        """The facts of so many letters, of which these are the newest."""
        return cls(
            entries=entries,
            reasons=Counter(one.reason for one in newest),
            recent=sum(0 <= now_ms - one.died_at_ms < RECENT_MS for one in newest),
        )


def count(client: redis.Redis, keys: Keys) -> int:
    """The number of dead letters; 0 when something else has their name, which ops/health/keys.py says."""
    try:
        return client.xlen(keys.dead)
    except redis.ResponseError:
        return 0


def newest(client: redis.Redis, keys: Keys, most: int = LETTERS_READ_MAX, below: str = "") -> list[Letter]:
    """The newest letters, or those older than the one with the id `below`; fewer when they are very large."""
    script = client.register_script(script_text("ops", "letters"))
    rows = cast("list[Any]", script(keys=[keys.dead], args=[most, f"({below}" if below else "+", _BYTES_MAX]))
    return [Letter(**named(row[0], dict(zip(row[1::2], row[2::2], strict=True)))) for row in rows]


def read(client: redis.Redis, keys: Keys, now_ms: int) -> LetterFacts:
    """Counts the dead letters, and reads the newest hundred."""
    entries = count(client, keys)
    return LetterFacts.of(entries, newest(client, keys) if entries else (), now_ms)
