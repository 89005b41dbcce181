"""The times of the stages of a request's way, as counts in buckets: in memory, and in fields of a hash.

A field is `<stage>:<kind>:<level>:<outcome>:<bucket>`, and in the hash of a minute the same without the
outcome. `<bucket>` is the number of the first of `BOUNDS_US` that a time does not exceed, or 25 for a longer
one, and holds how many they are; `sum` in its place holds their sum in microseconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

#: The consecutive stages of a worker, and the whole way from the submit to the end of the last of them.
STAGES = ("queue", "batch", "model", "gate", "finish")
END_TO_END = "end_to_end"
#: A client that counts too has the way of the answer from the server to it, and its own whole way.
REPLY = "reply"
CLIENT = "client"
#: Upper bounds of the buckets, microseconds; the objective of 1.2 ms is one of them.
BOUNDS_US = (
    *(20, 50, 100, 150, 200, 300, 400, 600, 800, 1_200, 1_600, 2_400, 5_000, 10_000, 20_000, 50_000),
    *(100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000),
)
BUCKETS = len(BOUNDS_US) + 1
#: A stream id holds whole milliseconds, cut off: this much is added, so that the mean is right.
_CUT_OFF_MS = 0.5
#: A longer time counts as one of this length, so that no clock of a client makes the sum useless; and a time
#: may seem negative by the half millisecond of a stream id: in the sum it is, so that the mean is right.
_US_MIN, _US_MAX = -1_000, 3_600_000_000
SUM = "sum"
_BOUNDS = np.array(BOUNDS_US)


class StageLabels(NamedTuple):
    """The labels of a time: its stage, the kind of worker, the level, and how the request left the worker."""

    stage: str
    kind: str
    level: str
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageHistogram:
    """The times of one stage, of the requests with the same labels.

    Attributes:
        stage: One of `STAGES`, `REPLY` or `END_TO_END`.
        kind: `amn`, `fallback`, `secondary` or `client`; "" for all of them, and so the next two.
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
        return replace(self, counts=counts, sum_us=self.sum_us - before.sum_us)


class StageCounts:
    """The counts of one process: one thread at a time adds to them, and another may take their growth."""

    def __init__(self) -> None:
        self._rows: dict[StageLabels, list[int]] = {}
        self._taken: dict[StageLabels, list[int]] = {}

    def row(self, labels: StageLabels) -> list[int]:
        """The counts of one series: a number a bucket, and the sum in microseconds; `add` adds to it."""
        return self._rows.setdefault(labels, [0] * (BUCKETS + 1))

    def growth(self) -> list[tuple[StageLabels, str, int]]:
        """Takes what was added since the last call: labels, bucket and number.

        It is taken once, whatever becomes of it: a second of counts may be lost, and none counts twice.
        """
        grown = []
        for labels, row in list(self._rows.items()):
            now = row[:]
            before = self._taken.get(labels) or [0] * len(now)
            self._taken[labels] = now
            for bucket, (new, old) in enumerate(zip(now, before, strict=True)):
                if new != old:
                    grown.append((labels, SUM if bucket == BUCKETS else str(bucket), new - old))
        return grown

    def histograms(self) -> list[StageHistogram]:
        """All that was added so far."""
        rows = list(self._rows.items())
        return [
            StageHistogram(**labels._asdict(), counts=tuple(row[:-1]), sum_us=row[-1]) for labels, row in rows
        ]


def add(row: list[int], us: float) -> None:
    """Adds a time, microseconds, to a row of counts."""
    whole = min(max(int(us), _US_MIN), _US_MAX)
    row[bisect_left(BOUNDS_US, whole)] += 1
    row[BUCKETS] += whole


def add_all(row: list[int], us: NDArray[np.floating]) -> None:
    """Adds times, microseconds, to a row of counts."""
    whole = np.clip(us, _US_MIN, _US_MAX).astype(np.int64)
    for bucket, count in enumerate(np.bincount(np.searchsorted(_BOUNDS, whole)).tolist()):
        row[bucket] += count
    row[BUCKETS] += int(whole.sum())


def appended_at_ms(entry_id: bytes) -> float:
    """The server's clock at the append of an entry: within half a millisecond, and right on average."""
    return int(entry_id.partition(b"-")[0]) + _CUT_OFF_MS


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
