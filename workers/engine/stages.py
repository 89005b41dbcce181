"""Counts the time that requests spend in each stage of a worker.

The stages follow one another, so that they add up to the whole: `queue` from the client's submit to
the read (of an escalated request: from the escalation), `batch` until the micro-batch stands, `model`,
`gate` until every outcome is known, `finish` until the answers lie on the server, by its clock.
Everything of a micro-batch goes through the last four together. `end_to_end` is counted where a request
ends, from its submit.

The loop only notes each micro-batch, when its answers are on their way. The notes of many are counted at
once: by the loop when they are enough, and by the keeper before it tells the server.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from producer.messages import DEFAULT_PRIORITY, PRIORITIES, Request
from producer.stages import END_TO_END, STAGES, StageCounts, StageLabels, add_all, appended_at_ms
from producer.transport.clock import time_ms
from workers.engine.entry import Moments, Outcome
from workers.engine.microbatch import MicroBatch

#: Lifetime of the counts of a minute.
MINUTE_TTL_MS = 25 * 3_600_000
ESCALATED = "escalated"
_KINDS = ("amn", "amn", "amn", "fallback", "secondary")
#: Requests that are counted at once: few calls of NumPy for each, and together a fraction of a millisecond.
_NOTED_MAX = 256

#: Stands for a request that could not be decoded.
_UNKNOWN = Request(id="", reply_to="", context=np.empty(0, np.float32))

#: A place, the level that a request names, and the first letter of its counters: that of how it left.
_Key = tuple[int, str, str]


class _Noted(NamedTuple):
    """A micro-batch that the server took, at `ended_at` by its TIME, which was heard of at `heard_s` here.

    Of each request `rows` holds place, level, counters, stream id, and submit in epoch ms or 0.
    """

    moments: Moments
    ended_at: Sequence[bytes]
    heard_s: float
    rows: list[tuple[int, str, str, bytes, float]]

    def spent_us(self) -> tuple[float, float, float, float]:
        """The times of the stages behind `queue`, microseconds."""
        leased_at_ms, leased_at_s, started_s, predicted_s, decided_s = self.moments
        finish_us = (time_ms(self.ended_at) - leased_at_ms) * 1000 - (decided_s - leased_at_s) * 1e6
        # It ended before that was heard of here, whatever the server's clock says.
        finish_us = min(max(finish_us, 0.0), (self.heard_s - decided_s) * 1e6)
        model_us, gate_us = (predicted_s - started_s) * 1e6, (decided_s - predicted_s) * 1e6
        return (started_s - leased_at_s) * 1e6, model_us, gate_us, finish_us


class _Found:
    """Requests of one key that are counted together: their micro-batches, and when they began, epoch ms."""

    __slots__ = ("began_ms", "counters", "escalated_ms", "numbers")

    def __init__(self) -> None:
        self.counters, self.numbers = "", list[int]()
        self.began_ms, self.escalated_ms = list[float](), list[float]()


class StageTimes:
    """The times of one worker's requests: one thread notes them, and any may count them."""

    def __init__(self) -> None:
        self._counts, self._counting = StageCounts(), threading.Lock()
        self._noted: deque[_Noted] = deque()
        self._requests = 0

    def computed(self, batch: MicroBatch, outcomes: Sequence[Outcome]) -> None:
        """Notes the time at which the outcomes of a micro-batch stand, in the order of its requests."""
        now_s = time.perf_counter()
        started_s = batch.started_s or now_s  # nothing was left for the model
        moments = Moments(batch.leased_at_ms, batch.leased_at_s, started_s, batch.predicted_s or now_s, now_s)
        for outcome in batch.refused:
            outcome.moments = moments
        for outcome, request in zip(outcomes, batch.requests, strict=True):
            outcome.moments, outcome.request = moments, request

    def ended(self, outcomes: Sequence[Outcome], statuses: Sequence[bytes], at: Sequence[bytes]) -> None:
        """Notes the outcomes of one micro-batch that the server took, at this time as its TIME gives it."""
        rows = [
            (one.entry.place, request.priority, one.counters, one.entry.id, request.submitted_at_ms)
            for one, status in zip(outcomes, statuses, strict=True)
            if status == b"ok" and (request := one.request or _UNKNOWN)
        ]
        self._noted.append(_Noted(outcomes[0].moments, at, time.perf_counter(), rows))
        self._requests += len(rows)
        if self._requests >= _NOTED_MAX:
            self._count()

    def growth(self) -> list[tuple[StageLabels, str, int]]:
        """Takes what was counted since the last call, as `StageCounts.growth`."""
        self._count()
        return self._counts.growth()

    def _count(self) -> None:
        """Counts what is noted."""
        found: defaultdict[_Key, _Found] = defaultdict(_Found)
        with self._counting:
            self._requests = 0
            batches = [self._noted.popleft() for _ in range(len(self._noted))]
            for number, batch in enumerate(batches):
                for place, level, counters, entry_id, submitted_at_ms in batch.rows:
                    same = found[place, level, counters[:1]]
                    same.counters = counters
                    same.numbers.append(number)
                    same.began_ms.append(submitted_at_ms or appended_at_ms(entry_id))
                    if place > len(PRIORITIES):
                        same.escalated_ms.append(appended_at_ms(entry_id))
            read_ms = np.array([batch.moments.leased_at_ms for batch in batches])
            spent_us = np.array([batch.spent_us() for batch in batches])  # (batches, 4)
            for key, same in found.items():
                read, spent = read_ms[same.numbers], spent_us[same.numbers]
                waited_us = (read - np.array(same.escalated_ms or same.began_ms)) * 1000
                whole_us = (read - np.array(same.began_ms)) * 1000 + spent.sum(axis=1)
                columns = waited_us, *spent.T, whole_us
                for row, column in zip(self._rows(key, same.counters), columns, strict=False):
                    add_all(row, column)

    def _rows(self, key: _Key, counters: str) -> list[list[int]]:
        """The counts of a key: one for each of `STAGES`, and then the whole way of what ended."""
        place, level, _ = key
        outcome = counters.partition(",")[0].partition(":")[0]
        if place <= len(PRIORITIES):  # the stream counts, and what a request says is information
            level = PRIORITIES[place - 1]
        elif level not in PRIORITIES:
            level = DEFAULT_PRIORITY
        names = STAGES if outcome == ESCALATED else (*STAGES, END_TO_END)
        return [self._counts.row(StageLabels(name, _KINDS[place - 1], level, outcome)) for name in names]
