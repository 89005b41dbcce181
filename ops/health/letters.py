"""The dead letters: how many, why, and how fast they grow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import redis

from ops.health.findings import FAILURE, OK, WARNING, Finding
from producer.keys import Keys
from workers.settings import QueueSettings

_LOOKED_AT_MAX = 100
RECENT_MS = 600_000
#: So many within `RECENT_MS` are an incident and not an accident.
GROWTH_MAX = 20
#: Of the cap; from there on the oldest will soon be dropped unseen.
NEARLY_FULL = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFacts:
    """All of them.

    Attributes:
        entries: Letters kept.
        reasons: Of the newest hundred.
        recent: Of the newest hundred, those of the last ten minutes.
        cap: Most that are kept; None for the workers' default.
    """

    entries: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    recent: int = 0
    cap: int = QueueSettings().dead_entries_max


def look(client: redis.Redis, keys: Keys, now_ms: int) -> LetterFacts:
    """Counts, and the newest hundred."""
    reasons: dict[str, int] = {}
    try:
        rows = cast(
            "list[tuple[bytes, dict[bytes, bytes]]]", client.xrevrange(keys.dead, count=_LOOKED_AT_MAX)
        )
    except redis.ResponseError:  # something else has its name: integrity.py says so
        return LetterFacts()
    for _, fields in rows:
        reason = fields.get(b"reason", b"?").decode("utf-8", "replace")
        reasons[reason] = reasons.get(reason, 0) + 1
    recent = sum(0 <= now_ms - int(name.partition(b"-")[0]) < RECENT_MS for name, _ in rows)
    return LetterFacts(entries=cast(Any, client.xlen(keys.dead)), reasons=reasons, recent=recent)


def judge(letters: LetterFacts) -> list[Finding]:
    """One finding."""
    if not letters.entries:
        return [Finding(OK, "dead letters", "none")]
    reasons = ", ".join(f"{count} {reason}" for reason, count in letters.reasons.items())
    text = f"{letters.entries} ({reasons}); `amn dlq list` shows them"
    level = WARNING
    if letters.recent >= GROWTH_MAX:
        many = f"{letters.recent} or more" if letters.recent == _LOOKED_AT_MAX else str(letters.recent)
        level, text = FAILURE, f"{many} new in {RECENT_MS // 60_000} minutes, of {text}"
    if letters.entries >= NEARLY_FULL * letters.cap:
        text += f"; at {letters.cap} the oldest are dropped: replay or purge"
    return [Finding(level, "dead letters", text)]
