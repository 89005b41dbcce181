"""The choice of who answers, by the policy's rules and within the budget. Pure: no clock, no I/O.

A request is flagged by hard rules (lane, length) or by soft ones (scores). Every flagged request is
escalated or shed, and an answer says which: `reasons` names the rules, `shed` why they were overruled.

    hard rule ─────────────────────────┬─ in time? ─ fallback up? ──────────────────────────┬─ escalate
    soft rule ─ gain above the least? ─┘                           └ best within the budget? ┘

Hard rules have a limit of their own, `budget.hard_rate`, where the policy sets one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amn.policy import ENFORCE, EscalationPolicy

HIGH_STAKES_LANE = "high_stakes_lane"
LONG_CONTEXT = "long_context"
LOW_CONFIDENCE = "low_confidence"
THIN_MARGIN = "thin_margin"
WORTH_ESCALATING = "worth_escalating"
ASKED_FOR = "asked_for"
#: Their places are bits of an answer to many contexts: a new one comes last.
REASONS = (HIGH_STAKES_LANE, LONG_CONTEXT, LOW_CONFIDENCE, THIN_MARGIN, WORTH_ESCALATING, ASKED_FOR)

#: Why a flagged request is answered by AMN all the same.
SHED_BUDGET = "budget"
SHED_HARD = "hard_budget"
SHED_NO_GAIN = "no_gain"
SHED_LAG = "fallback_lag"
SHED_DEADLINE = "deadline"
SHED_DOWN = "fallback_down"

#: Candidates that the threshold is taken from; a power of two.
RECENT = 2048


class Scores(NamedTuple):
    """The scores that the soft rules look at; one that the policy does not ask for stays as it is here."""

    confidence: float = 0.0
    margin: float = 0.0
    gain: float = 0.0


class Decision(NamedTuple):
    """The decision about one request.

    Attributes:
        escalate: True if a fallback answers.
        reasons: The rules that fired, in the order of `REASONS`.
        shed: Why the rules were overruled, or "".
        beyond: Escalated although the budget is spent: a hard rule, or a budget that only observes.
    """

    escalate: bool
    reasons: tuple[str, ...] = ()
    shed: str = ""
    beyond: bool = False


ANSWER = Decision(False)


class Allowance:
    """The escalations that one worker may make, and made. One thread decides and counts, another one
    settles the counts with the shared budget; each writes only its own fields, so neither waits.

    Attributes:
        seen, hard, soft: Requests decided, and of them escalated by hard rules and by soft ones.
        hard_max: Up to how many hard rules may escalate.
        wanted: Soft candidates: flagged, in time, with a gain above the policy's least.
        file_seen, file_soft: Rows of files, and of them those that their client chose for a fallback: an
            account of its own, so that neither lives off the other.
        recent: Gains of the last candidates, a ring of `RECENT`.
        granted: Soft escalations that the budget has granted so far.
        threshold: Candidates below this gain are shed.
        lagging: True while the threshold is above what the budget asks, because the fallback is behind.
        passed, passed_max: Escalations so far, and up to how many the circuit breaker lets through.
    """

    __slots__ = (
        *("file_seen", "file_soft", "granted", "hard", "hard_max", "lagging", "passed", "passed_max"),
        *("recent", "seen", "soft", "threshold", "wanted"),
    )

    def __init__(self, granted: float = 0.0) -> None:
        self.seen = self.hard = self.soft = self.wanted = self.passed = 0
        self.file_seen = self.file_soft = 0
        self.recent = np.zeros(RECENT)
        self.granted = granted
        self.threshold = -math.inf
        self.lagging = False
        self.passed_max = self.hard_max = math.inf

    @classmethod
    def unlimited(cls) -> Allowance:
        """Without a budget."""
        return cls(granted=math.inf)

    @property
    def left(self) -> float:
        """Soft escalations that are granted and not used."""
        return self.granted - self.soft

    @property
    def breaker_left(self) -> float:
        """Escalations that the circuit breaker still lets through; the settling thread sets it."""
        return self.passed_max - self.passed

    @breaker_left.setter
    def breaker_left(self, count: float) -> None:
        self.passed_max = self.passed + count

    def candidates(self) -> NDArray[np.float64]:
        """Gains of the last candidates."""
        return self.recent[: min(self.wanted, RECENT)]


def hard_rules(policy: EscalationPolicy, lane: str, tokens: int, asked_for: bool = False) -> tuple[str, ...]:
    """The hard rules that fire; they need no score, so they are asked first."""
    reasons: tuple[str, ...] = ()
    if lane in policy.hard.lanes:
        reasons += (HIGH_STAKES_LANE,)
    if tokens > policy.hard.tokens_max:
        reasons += (LONG_CONTEXT,)
    if asked_for:
        reasons += (ASKED_FOR,)
    return reasons


def soft_rules(policy: EscalationPolicy, scores: Scores) -> tuple[str, ...]:
    """The soft rules that fire."""
    reasons: tuple[str, ...] = ()
    if policy.confidence is not None and scores.confidence < policy.confidence.below:
        reasons += (LOW_CONFIDENCE,)
    if policy.margin is not None and scores.margin < policy.margin.below:
        reasons += (THIN_MARGIN,)
    if policy.gain is not None and policy.gain.rule and scores.gain > policy.gain.min:
        reasons += (WORTH_ESCALATING,)
    return reasons


def decide(
    policy: EscalationPolicy,
    allowance: Allowance,
    hard: tuple[str, ...],
    scores: Scores,
    *,
    in_time: bool = True,
) -> Decision:
    """Decides one request, and counts it.

    Args:
        hard: The hard rules that fired.
        scores: Looked at when `hard` is empty.
        in_time: True if a fallback's answer could still meet the deadline. A request that could not
            is shed before the budget is asked: it spends nothing.
    """
    allowance.seen += 1
    reasons = hard or soft_rules(policy, scores)
    if not reasons:
        return ANSWER
    if not hard and policy.gain is not None and not scores.gain > policy.gain.min:
        return Decision(False, reasons, SHED_NO_GAIN)
    if not in_time:
        return Decision(False, reasons, SHED_DEADLINE)
    if allowance.passed_max - allowance.passed < 1:
        return Decision(False, reasons, SHED_DOWN)
    beyond = allowance.granted - allowance.soft < 1
    if hard:
        if allowance.hard >= allowance.hard_max:
            return Decision(False, reasons, SHED_HARD)
        allowance.hard += 1
    else:
        allowance.recent[allowance.wanted & (RECENT - 1)] = scores.gain
        allowance.wanted += 1
        if policy.budget.mode == ENFORCE:
            if scores.gain < allowance.threshold:
                return Decision(False, reasons, SHED_LAG if allowance.lagging else SHED_BUDGET)
            if beyond:
                return Decision(False, reasons, SHED_BUDGET)
        allowance.soft += 1
    allowance.passed += 1
    return Decision(True, reasons, beyond=beyond)


def threshold_for(gains: NDArray[np.float64], share: float) -> float:
    """The gain that `share` of the candidates reach: equal ones are all let through.

    Args:
        gains: Gains of recent candidates; empty when there were none.
        share: Share of the candidates that can be escalated, 0 or more.
    """
    if share >= 1 or not len(gains):
        return -math.inf
    if share <= 0:
        return math.inf
    return float(np.quantile(gains, 1 - share, method="lower"))
