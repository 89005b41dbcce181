"""Counts the time that requests spend in each stage of a worker.

The stages follow one another, so that they add up to the whole: `queue` from the client's submit to
the read (of an escalated request: from the escalation), `batch` until the micro-batch stands, `model`,
`gate` until every outcome is known, `finish` until the answers lie on the server, by its clock.
Everything of a micro-batch goes through the last four together. `end_to_end` is counted where a request
ends, from its submit.

Nothing is counted before the answers are on their way.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from producer.messages import DEFAULT_PRIORITY, PRIORITIES
from producer.stages import END_TO_END, STAGES, StageCounts, StageLabels, add, add_since, appended_at_ms
from workers.engine.entry import Moments, Outcome
from workers.engine.microbatch import MicroBatch

#: Lifetime of the counts of a minute.
MINUTE_TTL_MS = 25 * 3_600_000
ESCALATED = "escalated"
_KINDS = ("amn", "amn", "amn", "fallback", "secondary")


#: A place, the level that a request names, and the first letter of its counters: that of how it left.
_Key = tuple[int, str, str]


class _Rows(NamedTuple):
    """The rows of one kind, level and outcome: one for each of `STAGES`, and that of the whole way."""

    stages: tuple[list[int], ...]
    end_to_end: list[int] | None


class StageTimes:
    """The times of one worker's requests; the loop's own thread adds, and the keeper tells the server."""

    def __init__(self) -> None:
        self.counts = StageCounts()
        self._rows: dict[_Key, _Rows] = {}

    def computed(self, batch: MicroBatch, outcomes: Sequence[Outcome]) -> None:
        """Notes the time at which the outcomes of a micro-batch stand, in the order of its requests."""
        now_s = time.perf_counter()
        started_s = batch.started_s or now_s  # nothing was left for the model
        moments = Moments(batch.leased_at_ms, batch.leased_at_s, started_s, batch.predicted_s or now_s, now_s)
        for outcome in batch.refused:
            outcome.moments = moments
        for outcome, request in zip(outcomes, batch.requests, strict=True):
            outcome.moments, outcome.request = moments, request

    def ended(self, outcomes: Sequence[Outcome], statuses: Sequence[bytes], ended_at_ms: float) -> None:
        """Counts the outcomes of one micro-batch that the server took, at `ended_at_ms` by its clock."""
        if (moments := outcomes[0].moments) is None:
            return
        leased_at_ms, leased_at_s, started_s, predicted_s, decided_s = moments
        before_us = (decided_s - leased_at_s) * 1e6
        # That was before its answer came here, whatever the server's clock says.
        most_us = (time.perf_counter() - decided_s) * 1e6
        finish_us = min(max((ended_at_ms - leased_at_ms) * 1000 - before_us, 0.0), most_us)
        model_us, gate_us = (predicted_s - started_s) * 1e6, (decided_s - predicted_s) * 1e6
        spent_us = ((started_s - leased_at_s) * 1e6, model_us, gate_us, finish_us)
        ended_here_ms = leased_at_ms + (before_us + finish_us) / 1000
        submitted_ms: dict[_Key, list[float]] = {}
        escalated_ms: dict[_Key, list[float]] = {}
        for outcome, status in zip(outcomes, statuses, strict=True):
            if status != b"ok":
                continue
            entry, request = outcome.entry, outcome.request
            key = entry.place, request.priority if request else DEFAULT_PRIORITY, outcome.counters[:1]
            if key not in submitted_ms:
                submitted_ms[key], escalated_ms[key] = [], []
                if key not in self._rows:
                    self._rows[key] = self._found(key, outcome.counters)
            submitted_at_ms = request.submitted_at_ms if request else 0.0
            submitted_ms[key].append(submitted_at_ms or appended_at_ms(entry.id))
            if entry.place > len(PRIORITIES):
                escalated_ms[key].append(appended_at_ms(entry.id))
        for key, starts_ms in submitted_ms.items():
            (waited, *spent), whole = self._rows[key]
            add_since(waited, escalated_ms[key] or starts_ms, leased_at_ms)
            if whole is not None:
                add_since(whole, starts_ms, ended_here_ms)
            for row, us in zip(spent, spent_us, strict=True):
                add(row, us, len(starts_ms))

    def _found(self, key: _Key, counters: str) -> _Rows:
        """The rows of a place, a request's level, and what the first of an outcome's counters names."""
        number, level, _ = key
        outcome = counters.partition(",")[0].partition(":")[0]
        if number <= len(PRIORITIES):  # the stream counts, and what a request says is information
            level = PRIORITIES[number - 1]
        kind = _KINDS[number - 1]
        rows = [self.counts.row(StageLabels(stage, kind, level, outcome)) for stage in STAGES]
        ends = outcome != ESCALATED
        whole = self.counts.row(StageLabels(END_TO_END, kind, level, outcome)) if ends else None
        return _Rows(tuple(rows), whole)
