"""Batches of contexts in one message: decided for all rows at once, without an object for a row.

Hard rules are the message's and escalate all of it. Soft rules are a row's, and escalate nothing: a
message has one answer, which should not wait for a fallback because one row of many would be better
for it. Such a row is shed as `batch`, and its client may send it by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amn.gate.escalation import (
    LOW_CONFIDENCE,
    REASONS,
    SHED_DEADLINE,
    SHED_DOWN,
    SHED_HARD,
    SHED_NO_GAIN,
    THIN_MARGIN,
    WORTH_ESCALATING,
    Allowance,
    Decision,
    Scores,
    decide,
)
from amn.policy import EscalationPolicy
from producer.messages import BatchReply, Reply, Timings

SHED_BATCH = "batch"
#: What a code in `BatchReply.shed` means: 1 is the first.
SHEDS = (SHED_BATCH, SHED_NO_GAIN, SHED_DEADLINE, SHED_DOWN, SHED_HARD)
_NO_SCORES = Scores()


class Columns(NamedTuple):
    """Scores of B rows, each (B,)."""

    confidence: NDArray[np.floating]
    margin: NDArray[np.floating]
    gain: NDArray[np.floating]

    @classmethod
    def zeros(cls, count: int) -> Columns:
        """Scores of rows that none was asked for, in the types of those that were: a gain is a float64,
        and rounded it could fall on the other side of a threshold."""
        return cls(np.zeros(count, np.float32), np.zeros(count, np.float32), np.zeros(count))

    def part(self, rows: slice) -> Columns:
        """Of some rows."""
        return Columns(self.confidence[rows], self.margin[rows], self.gain[rows])

    def rows(self) -> list[Scores]:
        """One object a row."""
        return list(map(Scores, self.confidence.tolist(), self.margin.tolist(), self.gain.tolist()))


class Verdicts(NamedTuple):
    """What happens to a batch.

    Attributes:
        decision: Of the message; its reasons are the hard rules.
        fired: Shape (n,), uint8: bit i is set where `REASONS[i]` fired.
        shed: Shape (n,), uint8: 0, or 1 + the index in `SHEDS`.
    """

    decision: Decision
    fired: NDArray[np.uint8]
    shed: NDArray[np.uint8]

    def counters(self) -> str:
        """Counts of rows, for the finish step."""
        names = [f"batch:contexts={len(self.fired)}"]
        for bit, rule in enumerate(REASONS):
            names.append(f"batch:reason:{rule}={np.count_nonzero(self.fired & (1 << bit))}")
        for code, why in enumerate(SHEDS, 1):
            names.append(f"batch:shed:{why}={np.count_nonzero(self.shed == code)}")
        return ",".join(name for name in names if not name.endswith("=0"))


def decide_batch(
    policy: EscalationPolicy,
    allowance: Allowance,
    hard: tuple[str, ...],
    columns: Columns,
    *,
    in_time: bool = True,
) -> Verdicts:
    """Decides a batch and counts its contexts.

    Args:
        hard: The hard rules that fired for the message.
        columns: Scores of its rows, looked at when `hard` is empty.
        in_time: Whether a fallback's answer could still meet the deadline.
    """
    count = len(columns.gain)
    if not hard:
        fired = _soft(policy, columns)
        shed = np.where(fired, _SHED_BATCH, 0).astype(np.uint8)
        if policy.gain is not None:
            shed[(fired != 0) & ~(columns.gain > np.float64(policy.gain.min))] = _SHED_NO_GAIN
        # A row that may come again by itself is counted then.
        allowance.seen += count - int(np.count_nonzero(shed == _SHED_BATCH))
        return Verdicts(Decision(False), fired, shed)
    decision = decide(policy, allowance, hard, _NO_SCORES, in_time=in_time)
    allowance.seen += count - 1
    if decision.escalate:
        allowance.hard += count - 1
        allowance.passed += count - 1
    bits = sum(_BITS[rule] for rule in hard)
    code = 1 + SHEDS.index(decision.shed) if decision.shed else 0
    return Verdicts(decision, np.full(count, bits, np.uint8), np.full(count, code, np.uint8))


def batch_reply(
    request_id: str,
    shared: Reply,
    vectors: NDArray[np.float32],
    columns: Columns,
    verdicts: Verdicts,
    timings: Timings,
) -> BatchReply:
    """AMN's answer to a batch; `shared` is what its answers to single requests have in common."""
    return BatchReply(
        id=request_id,
        vectors=vectors,
        confidences=columns.confidence.astype(np.float32, copy=False),
        margins=columns.margin.astype(np.float32, copy=False),
        gains=columns.gain.astype(np.float32, copy=False),
        rules=REASONS,
        fired=verdicts.fired,
        sheds=SHEDS,
        shed=verdicts.shed,
        served_by=shared.served_by,
        provisional=verdicts.decision.escalate,
        degraded=shared.degraded,
        model=shared.model,
        bank=shared.bank,
        policy=shared.policy,
        confidence_method=shared.confidence_method,
        margin_method=shared.margin_method,
        timings=timings,
    )


_BITS = {rule: 1 << bit for bit, rule in enumerate(REASONS)}
_SHED_BATCH, _SHED_NO_GAIN = 1 + SHEDS.index(SHED_BATCH), 1 + SHEDS.index(SHED_NO_GAIN)


def _soft(policy: EscalationPolicy, columns: Columns) -> NDArray[np.uint8]:
    """The soft rules that fire, as bits (n,); `amn.gate.escalation.soft_rules` for many rows.

    Thresholds are float64, as there: NumPy would round Python's to the float32 of the scores.
    """
    fired = np.zeros(len(columns.gain), np.uint8)
    if policy.confidence is not None:
        fired[columns.confidence < np.float64(policy.confidence.below)] |= _BITS[LOW_CONFIDENCE]
    if policy.margin is not None:
        fired[columns.margin < np.float64(policy.margin.below)] |= _BITS[THIN_MARGIN]
    if policy.gain is not None and policy.gain.rule:
        fired[columns.gain > np.float64(policy.gain.min)] |= _BITS[WORTH_ESCALATING]
    return fired
