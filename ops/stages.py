"""The times of the stages, as the workers counted them: read from the server, with their percentiles.

A percentile is interpolated within its bucket, so that it is wrong by at most the bucket's width; the
sum, and so the mean, is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self, cast

import redis

from ops.clock import server_now_ms
from producer.keys import Keys
from producer.messages import BULK_PRIORITY
from producer.stages import BOUNDS_US, BUCKETS, END_TO_END, STAGES, SUM

KINDS = ("amn", "fallback", "secondary")
_QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
#: The numbers that people are shown of each stage, milliseconds.
STATISTICS = ("mean", *_QUANTILES)
#: Series that are read: stages, kinds, levels and outcomes are few, and a stranger's fields may be many.
_FIELDS_MAX = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StageHistogram:
    """The times of one stage, of the requests with the same labels.

    Attributes:
        stage: One of `producer.stages.STAGES`, or `END_TO_END`.
        kind: `amn`, `fallback` or `secondary`; "" for all of them, and so the next two.
        level: `high`, `normal` or `low`.
        outcome: `answered`, `escalated`, `failed` or `dead`; always "" of a window of time.
        counts: Number of times in each bucket of `BOUNDS_US`, and beyond.
        sum_us: Their sum, microseconds.
    """

    stage: str
    kind: str = ""
    level: str = ""
    outcome: str = ""
    counts: tuple[int, ...] = (0,) * BUCKETS
    sum_us: int = 0

    @property
    def count(self) -> int:
        """Number of times that were counted."""
        return sum(self.counts)

    @property
    def mean_ms(self) -> float | None:
        """Their mean; None when there are none."""
        return self.sum_us / self.count / 1000 if self.count else None

    def quantile_ms(self, share: float) -> float | None:
        """The time that this share of the requests did not exceed; None when there are none.

        One beyond the last bound is that bound.
        """
        wanted, below = share * self.count, 0
        if not self.count:
            return None
        for bucket, count in enumerate(self.counts[:-1]):
            if count and below + count >= wanted:
                least = BOUNDS_US[bucket - 1] if bucket else 0
                return (least + (BOUNDS_US[bucket] - least) * max(wanted - below, 0) / count) / 1000
            below += count
        return BOUNDS_US[-1] / 1000

    def within(self, us: int) -> float | None:
        """The share of times of at most `us`, which must be one of `BOUNDS_US`; None when there are none."""
        reached = sum(self.counts[: BOUNDS_US.index(us) + 1])
        return reached / self.count if self.count else None

    def since(self, before: Self | None) -> Self:
        """The times that were added since an earlier reading of the same series."""
        if before is None:
            return self
        counts = tuple(now - then for now, then in zip(self.counts, before.counts, strict=True))
        if min(counts) < 0:  # the server was emptied meanwhile
            return self
        return self._with(counts, self.sum_us - before.sum_us)

    def _with(self, counts: tuple[int, ...], sum_us: int) -> Self:
        return type(self)(
            stage=self.stage,
            kind=self.kind,
            level=self.level,
            outcome=self.outcome,
            counts=counts,
            sum_us=sum_us,
        )


def read_total(client: redis.Redis, keys: Keys) -> list[StageHistogram]:
    """All times since the first request, by stage, kind, level and outcome."""
    return parse([_fields(client, keys.stages)])


def read(client: redis.Redis, keys: Keys, window_s: float, now_ms: int = 0) -> list[StageHistogram]:
    """The times of the last `window_s` seconds, up to 24 h, by stage, kind and level.

    The server keeps them by the minute: the oldest minute is read as a whole.

    Args:
        now_ms: Server's clock; 0 to ask for it.
    """
    now_ms = now_ms or server_now_ms(client)
    first, last = int((now_ms - window_s * 1000) // 60_000), now_ms // 60_000
    return parse(read_minutes(client, keys, first, last).values())


def read_minutes(client: redis.Redis, keys: Keys, first: int, last: int) -> dict[int, dict[bytes, bytes]]:
    """The stored fields of the epoch minutes from `first` to `last`, for `parse`; one round trip."""
    minutes = range(first, last + 1)
    with client.pipeline(transaction=False) as pipe:
        for minute in minutes:
            pipe.hgetall(keys.stages_minute(minute))
        found: list[Any] = pipe.execute(raise_on_error=False)
    return {minute: one for minute, one in zip(minutes, found, strict=True) if one and isinstance(one, dict)}


def parse(stored: Iterable[Mapping[bytes, bytes]]) -> list[StageHistogram]:
    """Adds up the fields of hashes, in the order of the stages; what is not ours is left out."""
    rows: dict[tuple[str, ...], list[int]] = {}
    for fields in stored:
        for field, value in fields.items():
            *labels, bucket = field.decode("utf-8", "replace").split(":")
            known = 3 <= len(labels) <= 4 and labels[0] in _ORDER and labels[1] in KINDS
            if known and bucket in _COLUMNS and value.isdigit():
                row = rows.setdefault(tuple(labels), [0] * (BUCKETS + 1))
                row[_COLUMNS[bucket]] += int(value)
    return [
        StageHistogram(
            stage=labels[0],
            kind=labels[1],
            level=labels[2],
            outcome=labels[3] if len(labels) == 4 else "",
            counts=tuple(row[:-1]),
            sum_us=row[-1],
        )
        for labels, row in sorted(rows.items(), key=lambda item: (_ORDER[item[0][0]], item[0]))
    ]


def merged(histograms: Iterable[StageHistogram], *by: str) -> list[StageHistogram]:
    """Adds up those that agree in the labels `by`, such as "stage" and "kind"; the other labels are ""."""
    found: dict[tuple[str, ...], list[StageHistogram]] = {}
    for one in histograms:
        found.setdefault(tuple(getattr(one, name) for name in by), []).append(one)
    return [
        StageHistogram(
            **{"stage": "", **dict(zip(by, labels, strict=True))},
            counts=tuple(map(sum, zip(*(one.counts for one in same), strict=True))),
            sum_us=sum(one.sum_us for one in same),
        )
        for labels, same in found.items()
    ]


def shown(histograms: Iterable[StageHistogram]) -> dict[str, dict[str, dict[str, float]]]:
    """For people and programs: by kind and stage the number of requests, and of their ms the `STATISTICS`.

    Bulk work, for which nobody waits, stands apart as "<kind>, low".
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for bulk in (False, True):
        some = (one for one in histograms if (one.level == BULK_PRIORITY) == bulk)
        for one in merged(some, "stage", "kind"):
            if one.count:
                values = {"mean": one.mean_ms, **{n: one.quantile_ms(q) for n, q in _QUANTILES.items()}}
                numbers = {name: round(value, 3) for name, value in values.items() if value is not None}
                name = f"{one.kind}, {BULK_PRIORITY}" if bulk else one.kind
                found.setdefault(name, {})[one.stage] = {"requests": one.count, **numbers}
    return dict(sorted(found.items()))


def grown(before: Iterable[StageHistogram], now: Iterable[StageHistogram]) -> list[StageHistogram]:
    """The times that were added between two readings of all times."""
    earlier = {(one.stage, one.kind, one.level, one.outcome): one for one in before}
    return [one.since(earlier.get((one.stage, one.kind, one.level, one.outcome))) for one in now]


#: The order in which stages are shown.
_ORDER = {stage: number for number, stage in enumerate((*STAGES, END_TO_END))}
#: Where a bucket's number stands in a row, and the sum behind them.
_COLUMNS = {**{str(bucket): bucket for bucket in range(BUCKETS)}, SUM: BUCKETS}


def _fields(client: redis.Redis, key: str) -> dict[bytes, bytes]:
    """A hash of counts; nothing when something else has its name, or it is far too large to be ours."""
    try:
        if client.hlen(key) > _FIELDS_MAX:
            return {}
        return cast("dict[bytes, bytes]", client.hgetall(key))
    except redis.ResponseError:
        return {}


def cumulative(histogram: StageHistogram) -> list[int]:
    """Numbers of times that are at most each of `BOUNDS_US`, and of all, as Prometheus counts."""
    return list(accumulate(histogram.counts))
