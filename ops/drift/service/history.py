"""The history of the service: a row a minute, written by the judge that leads, kept for a day.

    amn:{main}:drift:history   stream   `row`: JSON of a minute; capped at 25 hours, expires

A row holds counters as they stood, so that a reader makes rates of any two rows, and the server's state at
that moment. One command reads all of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import redis

from amn.output import strict_json
from ops import stages
from ops.drift.service.live import DECIDED, ESCALATED, KINDS, Service
from ops.health.streams import SERVED
from ops.leader import Command
from producer.keys import Keys
from producer.stages import END_TO_END

_ROWS_MAX, _KEPT_S, _STEP_S, _HOUR_MS = 1_500, 2 * 86_400, 60, 3_600_000
MINUTES_MAX = 1_440
#: Two rows further apart than this have nothing known between them.
_GAP_MS = 150_000
#: Counters of a row, by short names: sums of counters of the stats hash.
COUNTERS: Mapping[str, tuple[str, ...]] = {
    "submitted": ("accepted:high", "accepted:normal", "accepted:low"),
    "refused": ("refused:high", "refused:normal", "refused:low"),
    **{name: (name,) for name in ("answered", "failed", "dead", "shed", "timed", "slow")},
    "expired": ("failed:deadline_exceeded",),
    "escalated": ESCALATED,
    "decided": DECIDED,
}
_RATES = ("submitted", "refused", "answered", "failed", "expired", "dead", "shed")
_SHARES = {"escalation_rate": ("escalated", "decided"), "slow_share": ("slow", "timed")}
#: Numbers of the last day's scores, by the names of `delta_values`.
QUALITY = {"ood_delta": "delta", "error": "delta_error"} | {
    name: name for short in ("ood", "id") for name in (f"mean_{short}", f"mean_{short}_error", f"n_{short}")
}
_STATE = (
    *("depth_amn", "depth_fallback", "oldest_ms", *(f"{kind}_workers" for kind in KINDS)),
    *("p50_ms", "p95_ms", "p99_ms", "delta", "mean_ood", "mean_id"),
)


def last_minute(client: redis.Redis, keys: Keys, now_ms: int) -> dict[str, float]:
    """The whole way of what AMN answers and somebody waits for, of the last whole minute: p50 to p99, ms."""
    minute = now_ms // 60_000 - 1
    shown = stages.shown(stages.parse(stages.read_minutes(client, keys, minute, minute).values()))
    times = shown.get("amn", {}).get(END_TO_END, {})
    return {f"{name}_ms": times[name] for name in stages.STATISTICS if name in times}


def row_of(
    service: Service, times: Mapping[str, float], quality: Mapping[str, float]
) -> dict[str, float | None]:
    """The row of this minute.

    Args:
        times: As `last_minute` gives them.
        quality: Means and delta of the last 24 h, as `Traffic.day_values` gives them.
    """
    depths = {
        f"depth_{kind}": sum(
            service.streams[name].entries for name in SERVED[kind] if name in service.streams
        )
        for kind in ("amn", "fallback")
    }
    return {
        "at_ms": service.now_ms,
        **{name: sum(service.counters.get(one, 0) for one in of) for name, of in COUNTERS.items()},
        **depths,
        "oldest_ms": round(1000 * service.age_s(*SERVED["amn"], *SERVED["fallback"])),
        **{f"{kind}_workers": service.working(kind) for kind in KINDS},
        **times,
        **{QUALITY[name]: round(value, 6) for name, value in quality.items() if name in QUALITY},
    }


def commands(keys: Keys, row: Mapping[str, float | None]) -> list[Command]:
    """The commands that keep a row, to be run under the judge's fence."""
    key = _key(keys)
    return [
        ("XADD", key, "MAXLEN", _ROWS_MAX, "*", "row", strict_json(row, compact=True)),
        ("EXPIRE", key, _KEPT_S),
    ]


def read(client: redis.Redis, keys: Keys, minutes: int = MINUTES_MAX) -> list[dict[str, Any]]:
    """The newest rows, oldest first; one that cannot be read is left out."""
    try:
        entries = cast("list[Any]", client.xrevrange(_key(keys), count=minutes + 1))
    except redis.ResponseError:  # something else has its name
        return []
    rows = (_row(fields.get(b"row", b"")) for _, fields in reversed(entries))
    return [row for row in rows if row is not None]


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows as the page draws them: a column of times, and one a series; None where nothing is known."""
    series: dict[str, list[float | None]] = {f"{name}_per_s": [] for name in _RATES}
    series |= {name: [] for name in (*_SHARES, *_STATE)}
    for before, row in pairwise([{}, *rows]):
        for_ms = row["at_ms"] - before.get("at_ms", 0)
        grown = {name: _grown(before, row, name) if 0 < for_ms <= _GAP_MS else None for name in COUNTERS}
        for name in _RATES:
            more = grown[name]
            series[f"{name}_per_s"].append(None if more is None else round(1000 * more / for_ms, 3))
        for name, (part, whole) in _SHARES.items():
            some, of = grown[part], grown[whole]
            series[name].append(round(some / of, 5) if some is not None and of else None)
        for name in _STATE:
            series[name].append(row.get(name))
    return {"step_s": _STEP_S, "at_ms": [row["at_ms"] for row in rows], "series": series}


def hour_share(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The share of the hour up to the newest row, each event weighing alike; None without any."""
    part, whole = _SHARES[name]
    recent = [row for row in rows if row["at_ms"] >= rows[-1]["at_ms"] - _HOUR_MS]
    some, of = (sum(_grown(*pair, counter) or 0 for pair in pairwise(recent)) for counter in (part, whole))
    return round(some / of, 5) if of else None


def _grown(before: Mapping[str, Any], row: Mapping[str, Any], name: str) -> float | None:
    """The growth of a counter; one that fell was set anew, and counts from nothing."""
    now, then = row.get(name), before.get(name)
    if now is None or then is None:
        return None
    return cast(float, now - then if now >= then else now)


def _row(stored: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(stored)
    except (ValueError, RecursionError):
        return None
    known = isinstance(row, dict) and isinstance(row.get("at_ms"), int)
    return {n: v for n, v in row.items() if v is None or isinstance(v, int | float)} if known else None


def _key(keys: Keys) -> str:
    return keys.drift_prefix + "history"
