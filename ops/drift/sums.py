"""Reads the shadow worker's per-minute sums, and takes the OOD delta from them. Judging is later.

The sums are integers in hashes `drift:minute:<m>`, one field per model, lane, slice, tier and
statistic (`workers.shadow_scores` tells the layout).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import redis

from producer.keys import Keys
from workers.shadow_scores import MILLION, TIER_TRUE, Labels

_MINUTES_AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceScore:
    """The AMN cosine over one slice.

    Attributes:
        predictions: Sampled requests.    n: Of those, the ones that met their truth.
        mean: Mean cosine to the truth.    deviation: Standard deviation of one request's cosine.
    """

    predictions: int
    n: int
    mean: float
    deviation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OodDelta:
    """Mean cosine out of distribution minus in distribution.

    Attributes:
        value: None when a slice has no sample.
        standard_error: As if samples were independent; neighbours in a text are not, so the true
            one is larger. A figure to look at, not to page on.
        slices: By name: "ood", "id", "unknown".
    """

    value: float | None
    standard_error: float | None
    slices: dict[str, SliceScore]


def read_sums(client: redis.Redis, keys: Keys, since_minute: int) -> dict[str, int]:
    """Sums of all minutes from `since_minute` (epoch minute) on, added up by field."""
    minutes = cast("list[bytes]", client.zrangebyscore(keys.drift_minutes, since_minute, "+inf"))
    totals: dict[str, int] = defaultdict(int)
    for first in range(0, len(minutes), _MINUTES_AT_ONCE):
        with client.pipeline(transaction=False) as pipe:
            for minute in minutes[first : first + _MINUTES_AT_ONCE]:
                pipe.hgetall(keys.drift_minute_prefix + minute.decode())
            for fields in cast("list[dict[bytes, bytes]]", pipe.execute()):
                for name, value in fields.items():
                    totals[name.decode()] += int(value)
    return dict(totals)


def ood_delta(sums: Mapping[str, int], model: str | None = None) -> OodDelta:
    """The delta over all lanes, of true next vectors only; of one model, or of all."""
    by_slice: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for labels, stat, value in _parsed(sums):
        if labels.tier == TIER_TRUE and model in (None, labels.model):
            by_slice[labels.slice][stat] += value
    slices = {name: _score(stats) for name, stats in sorted(by_slice.items())}
    ood, known = slices.get("ood"), slices.get("id")
    if not ood or not known or not ood.n or not known.n:
        return OodDelta(value=None, standard_error=None, slices=slices)
    variance = ood.deviation**2 / ood.n + known.deviation**2 / known.n
    return OodDelta(value=ood.mean - known.mean, standard_error=math.sqrt(variance), slices=slices)


def models(sums: Mapping[str, int]) -> list[str]:
    """The models that the sums are of."""
    return sorted({labels.model for labels, _, _ in _parsed(sums)})


def _parsed(sums: Mapping[str, int]) -> Iterable[tuple[Labels, str, int]]:
    for name, value in sums.items():
        try:
            labels, stat = Labels.parse(name)
        except ValueError:
            continue  # written by a later version; not ours to read
        yield labels, stat, value


def _score(stats: Mapping[str, Any]) -> SliceScore:
    n = stats.get("n", 0)
    mean = stats.get("amn.sum", 0) / MILLION / n if n else 0.0
    square = stats.get("amn.squares", 0) / MILLION / n if n else 0.0
    return SliceScore(
        predictions=stats.get("predictions", 0),
        n=n,
        mean=mean,
        deviation=math.sqrt(max(square - mean * mean, 0.0)),
    )
