"""The times of the stages, as the workers counted them: read from the server, with their percentiles.

A percentile is interpolated within its bucket, so that it is wrong by at most the bucket's width; the
sum, and so the mean, is exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import redis

from ops.clock import server_now_ms
from producer.keys import Keys
from producer.messages import BULK_PRIORITY, PRIORITIES
from producer.stages import BUCKETS, END_TO_END, REPLY, STAGES, SUM, StageHistogram, merged

KINDS = ("amn", "fallback", "secondary")
_QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
#: The numbers that people are shown of each stage, milliseconds.
STATISTICS = ("mean", *_QUANTILES)
#: Series that are read: stages, kinds, levels and outcomes are few, and a stranger's fields may be many.
_FIELDS_MAX = 20_000


def read_total(client: redis.Redis, keys: Keys) -> list[StageHistogram]:
    """All times since the first request, by stage, kind, level and outcome."""
    return parse(_hashes(client, [keys.stages]).values())


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
    """The stored fields of the epoch minutes from `first` to `last`, for `parse`; two round trips."""
    names = {keys.stages_minute(minute): minute for minute in range(first, last + 1)}
    return {names[name]: fields for name, fields in _hashes(client, list(names)).items()}


def parse(stored: Iterable[Mapping[bytes, bytes]]) -> list[StageHistogram]:
    """Adds up the fields of hashes, in the order of the stages; what is not ours is left out."""
    rows: dict[tuple[str, ...], list[int]] = {}
    for fields in stored:
        for field, value in fields.items():
            *labels, bucket = field.decode("utf-8", "replace").split(":")
            known = 3 <= len(labels) <= 4 and labels[0] in _ORDER and labels[1] in KINDS
            if known and labels[2] in PRIORITIES and bucket in _COLUMNS and _NUMBER.fullmatch(value):
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
_ORDER = {stage: number for number, stage in enumerate((*STAGES, REPLY, END_TO_END))}
_NUMBER = re.compile(rb"-?\d{1,18}")
#: Where a bucket's number stands in a row, and the sum behind them.
_COLUMNS = {**{str(bucket): bucket for bucket in range(BUCKETS)}, SUM: BUCKETS}


def _hashes(client: redis.Redis, names: Sequence[str]) -> dict[str, dict[bytes, bytes]]:
    """Hashes of counts by name, without those that are empty, no hash, or far too large to be ours."""
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hlen(name)
        lengths: list[Any] = pipe.execute(raise_on_error=False)
        ours = [
            n
            for n, size in zip(names, lengths, strict=True)
            if isinstance(size, int) and 0 < size <= _FIELDS_MAX
        ]
        for name in ours:
            pipe.hgetall(name)
        found: list[Any] = pipe.execute(raise_on_error=False)
    return {name: one for name, one in zip(ours, found, strict=True) if isinstance(one, dict)}
