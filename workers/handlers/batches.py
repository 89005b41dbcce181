"""Messages of many contexts: decided for all rows at once, without an object for a row.

Hard rules are the message's and escalate all of it. Soft rules are a row's, and escalate nothing: a
message has one answer, which should not wait for a fallback because one row of many would be better
for it. Such a row is shed as `batch`, and its client may send it by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amn.gate import escalation
from amn.gate.escalation import REASONS, Allowance, Decision, Scores, decide
from amn.gate.scores import Columns
from amn.policy import EscalationPolicy
from producer.messages import BatchReply, Reply, Request, Timings

SHED_BATCH = "batch"
#: Meanings of the codes in `BatchReply.shed`: 1 is the first.
SHEDS = (
    *(SHED_BATCH, escalation.SHED_NO_GAIN, escalation.SHED_DEADLINE),
    *(escalation.SHED_DOWN, escalation.SHED_HARD),
)
_CODES = {"": 0} | {why: code for code, why in enumerate(SHEDS, 1)}
_BITS = {rule: 1 << bit for bit, rule in enumerate(REASONS)}
_NO_SCORES = Scores()
_SHARED = ("served_by", "degraded", "model", "bank", "policy", "confidence_method", "margin_method")


class Verdicts(NamedTuple):
    """The decision on a message of n contexts.

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
        counts = {f"batch:reason:{rule}": np.count_nonzero(self.fired & bit) for rule, bit in _BITS.items()}
        counts |= {f"batch:shed:{why}": np.count_nonzero(self.shed == _CODES[why]) for why in SHEDS}
        found = [f",{name}={count}" for name, count in counts.items() if count]
        return f"batch:contexts={len(self.fired)}" + "".join(found)


def decide_batch(
    policy: EscalationPolicy,
    allowance: Allowance,
    hard: tuple[str, ...],
    columns: Columns,
    *,
    in_time: bool = True,
    bulk: bool = False,
) -> Verdicts:
    """Decides a message and counts its contexts.

    Args:
        hard: The hard rules that fired for the message.
        columns: Scores of its rows, looked at when `hard` is empty.
        in_time: Whether a fallback's answer could still meet the deadline.
        bulk: Whether it waited at the level of files, whose client chooses the rows for a fallback.
    """
    count = len(columns.gain)
    if not hard:
        fired = _soft_rules(policy, columns)
        shed = np.where(fired, _CODES[SHED_BATCH], 0).astype(np.uint8)
        if policy.gain is not None:
            shed[(fired != 0) & ~(columns.gain > np.float64(policy.gain.min))] = _CODES[
                escalation.SHED_NO_GAIN
            ]
        if bulk:
            allowance.file_seen += count
        else:  # a row that may come again by itself is counted then
            allowance.seen += count - int(np.count_nonzero(shed == _CODES[SHED_BATCH]))
        return Verdicts(Decision(False), fired, shed)
    if bulk and hard == (escalation.ASKED_FOR,):
        decision = _asked_for(allowance, count, in_time)
    else:
        decision = decide(policy, allowance, hard, _NO_SCORES, in_time=in_time)
        allowance.seen += count - 1
        if decision.escalate:
            allowance.hard += count - 1
            allowance.passed += count - 1
    bits, code = sum(_BITS[rule] for rule in hard), _CODES[decision.shed]
    return Verdicts(decision, np.full(count, bits, np.uint8), np.full(count, code, np.uint8))


def _asked_for(allowance: Allowance, count: int, in_time: bool) -> Decision:
    """Decides rows of a file that its client chose: at most a fifth of those that were counted before.

    No limit stops them: which rows have a fallback's answer depends on the file alone. They are paid for by
    the rows of files; what these do not cover, live traffic does without, so that the rate of all holds.
    """
    reasons = (escalation.ASKED_FOR,)
    if not in_time:
        return Decision(False, reasons, escalation.SHED_DEADLINE)
    if allowance.breaker_left < 1:
        return Decision(False, reasons, escalation.SHED_DOWN)
    allowance.file_soft += count
    allowance.passed += count
    return Decision(True, reasons)


def batch_reply(
    request: Request,
    shared: Reply,
    vectors: NDArray[np.float32],
    columns: Columns,
    verdicts: Verdicts,
    timings: Timings,
) -> BatchReply:
    """AMN's answer to a message; `shared` is what its answers to single requests have in common."""
    return BatchReply(
        id=request.id,
        traceparent=request.traceparent,
        vectors=vectors,
        confidences=columns.confidence.astype(np.float32, copy=False),
        margins=columns.margin.astype(np.float32, copy=False),
        gains=columns.gain.astype(np.float32, copy=False),
        rules=REASONS,
        fired=verdicts.fired,
        sheds=SHEDS,
        shed=verdicts.shed,
        provisional=verdicts.decision.escalate,
        timings=timings,
        **{name: getattr(shared, name) for name in _SHARED},
    )


def _soft_rules(policy: EscalationPolicy, columns: Columns) -> NDArray[np.uint8]:
    """The soft rules that fire, as bits (n,); `amn.gate.escalation.soft_rules` for many rows.

    Thresholds are float64, as there: NumPy would round Python's to the float32 of the scores.
    """
    fired = np.zeros(len(columns.gain), np.uint8)
    if policy.confidence is not None:
        below = np.float64(policy.confidence.below)
        fired[columns.confidence < below] |= _BITS[escalation.LOW_CONFIDENCE]
    if policy.margin is not None:
        fired[columns.margin < np.float64(policy.margin.below)] |= _BITS[escalation.THIN_MARGIN]
    if policy.gain is not None and policy.gain.rule:
        fired[columns.gain > np.float64(policy.gain.min)] |= _BITS[escalation.WORTH_ESCALATING]
    return fired
