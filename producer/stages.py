"""The times of the stages of a request's way, as counts in buckets: in memory, and in fields of a hash.

A field is `<stage>:<kind>:<level>:<outcome>:<bucket>`, and in the hash of a minute the same without the
outcome. `<bucket>` is the number of the first of `BOUNDS_US` that a time does not exceed, or 25 for a longer
one, and holds how many they are; `sum` in its place holds their sum in microseconds.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

#: The consecutive stages of a worker, and the whole way from the submit to the end of the last of them.
STAGES = ("queue", "batch", "model", "gate", "finish")
END_TO_END = "end_to_end"
#: Upper bounds of the buckets, microseconds; the objective of 1.2 ms is one of them.
BOUNDS_US = (
    *(20, 50, 100, 150, 200, 300, 400, 600, 800, 1_200, 1_600, 2_400, 5_000, 10_000, 20_000, 50_000),
    *(100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000),
)
BUCKETS = len(BOUNDS_US) + 1
#: A longer time counts as one of this length, so that no clock of a client makes the sum useless.
_US_MAX = 3_600_000_000
SUM = "sum"


class StageLabels(NamedTuple):
    """The labels of a time: its stage, the kind of worker, the level, and how the request left the worker."""

    stage: str
    kind: str
    level: str
    outcome: str


class StageCounts:
    """The counts of one process: one thread adds to them, and another may take their growth."""

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


def add(row: list[int], us: float, times: int = 1) -> None:
    """Adds a time, microseconds, to a row of counts; one below 0 is an error of a clock, and counts as 0."""
    whole = min(max(int(us), 0), _US_MAX)
    row[bisect_left(BOUNDS_US, whole)] += times
    row[BUCKETS] += whole * times
