"""Exemplars of an alert: kept when it is told, scored again when somebody looks into it."""

from __future__ import annotations

from collections.abc import Sequence

import redis

from ops.alerts import Transition
from ops.drift.lab.paired import Sequences
from ops.errors import FileRefused
from producer.keys import Keys
from workers.shadow.exemplars import Exemplar, Exemplars, as_arrays

_HOUR_MS = 3_600_000
_RULES = ("ood_delta", "fast_drop", "level")


def of_last_day(client: redis.Redis, keys: Keys, now_ms: int, lane: str = "") -> list[Exemplar]:
    """The exemplars of the last 24 h, the worst first; of one lane when it is named."""
    hour = now_ms // _HOUR_MS
    return Exemplars(client, keys).read(hour - 23, hour, lane=lane)


def keep(client: redis.Redis, keys: Keys, changes: Sequence[Transition], now_ms: int) -> None:
    """Freezes what was seen before each drift alert that is told now, under the alert's id."""
    for change in changes:
        if change.kind == "trigger" and change.alert.rule in _RULES:
            found = of_last_day(client, keys, now_ms, change.alert.lane)
            mine = [one for one in found if one.model == change.alert.model]
            Exemplars(client, keys).freeze(change.alert.id, mine, now_ms)


def sequences_of(client: redis.Redis, keys: Keys, alert: str) -> Sequences:
    """Returns the sequences that were kept for an alert.

    Raises:
        FileRefused: Nothing is kept under this id.
    """
    found = Exemplars(client, keys).frozen(alert)
    if not found:
        raise FileRefused(f"no exemplars are kept for alert {alert}; they go after 14 days")
    return Sequences.of_arrays(as_arrays(found), f"alert {alert}")
