"""Who answers: the card's four rules, and the budget beside them. Pure: no clock, no I/O.

The rules are the card's, with its thresholds. Read literally they escalate most real requests
(`amn run --policy card` counts them), while the card allows 20 %. So the default policy keeps the
rules and caps what the two soft ones may spend; `card` is the same without the cap.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import NamedTuple

from amn.errors import ConfigError

#: How the two scores of the soft rules are defined; stamped on every answer.
CONFIDENCE_METHOD = "top1"
MARGIN_METHOD = "distinct"

LOW_CONFIDENCE = "low_confidence"
THIN_MARGIN = "thin_margin"
HIGH_STAKES_LANE = "high_stakes_lane"
LONG_CONTEXT = "long_context"
REASONS = (HIGH_STAKES_LANE, LONG_CONTEXT, LOW_CONFIDENCE, THIN_MARGIN)

SHED_BUDGET = "budget"
CARD_LANES = frozenset({"sci-fact", "math-derivation", "med-guideline", "policy/procedure"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EscalationPolicy:
    """Rules and budget.

    Attributes:
        name: Of the preset.
        confidence_min: Below this best cosine the answer is flagged `low_confidence`.
        margin_min: Below this difference of the two best cosines it is flagged `thin_margin`.
        tokens_max: Above this token count the request is flagged `long_context`.
        lanes: Lanes that are always escalated (`high_stakes_lane`).
        budget: Share of all requests that may be escalated; None for no cap. Lane and length
            rules are hard: never shed, though they use the budget up. The default stays half a
            point below the card's 20 %, which pays for a burst.
        burst: Escalations that may be saved up while few are needed.
    """

    name: str = "budgeted"
    confidence_min: float = 0.70
    margin_min: float = 0.02
    tokens_max: int = 384
    lanes: frozenset[str] = CARD_LANES
    budget: float | None = 0.195
    burst: float = 5.0
    version: int = 1

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 <= self.budget <= 1:
            raise ConfigError(f"budget is {self.budget}; use a share from 0 to 1, or none")

    @property
    def policy_id(self) -> str:
        """Name and hash of every value, stamped on each answer."""
        values = asdict(self) | {"lanes": sorted(self.lanes)}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        return f"{self.name}@{digest[:12]}"


PRESETS = {
    "budgeted": EscalationPolicy(),
    "card": EscalationPolicy(name="card", budget=None),
}


def preset(name: str) -> EscalationPolicy:
    """The named policy.

    Raises:
        ConfigError: No such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"policy {name!r} is not known; use one of {', '.join(PRESETS)}")
    return PRESETS[name]


class Decision(NamedTuple):
    """What happens to one request.

    Attributes:
        escalate: Whether a fallback answers.
        reasons: The rules that fired, hard ones first.
        shed: Why the rules were overruled, or "".
    """

    escalate: bool
    reasons: tuple[str, ...] = ()
    shed: str = ""


ANSWER = Decision(False)


class Budget:
    """A token bucket counted in requests, not in time: each request earns `rate` escalations.

    Over any n requests at most `rate * n + burst` soft escalations happen. Hard ones go through
    always and leave a debt, which soft ones pay back first.
    """

    __slots__ = ("burst", "rate", "tokens")

    def __init__(self, rate: float, burst: float, tokens: float = 0.0) -> None:
        self.rate = rate
        self.burst = burst
        self.tokens = tokens

    def earn(self) -> None:
        """One request came by."""
        self.tokens = min(self.burst, self.tokens + self.rate)

    def affords(self) -> bool:
        """Whether a soft escalation is within the budget."""
        return self.tokens >= 1.0

    def spend(self) -> None:
        """One escalation; a hard one may leave a debt."""
        self.tokens -= 1.0


def fired(
    policy: EscalationPolicy, confidence: float, margin: float, lane: str, tokens: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The hard and the soft rules that fire, each in the order of `REASONS`."""
    hard: tuple[str, ...] = ()
    soft: tuple[str, ...] = ()
    if lane in policy.lanes:
        hard += (HIGH_STAKES_LANE,)
    if tokens > policy.tokens_max:
        hard += (LONG_CONTEXT,)
    if confidence < policy.confidence_min:
        soft += (LOW_CONFIDENCE,)
    if margin < policy.margin_min:
        soft += (THIN_MARGIN,)
    return hard, soft


def decide(
    policy: EscalationPolicy,
    budget: Budget | None,
    *,
    confidence: float,
    margin: float,
    lane: str,
    tokens: int,
) -> Decision:
    """Applies the policy to one scored request.

    Args:
        budget: The state of the cap; None when the policy has none.
        confidence: Best cosine to the bank, -1..1.
        margin: Best minus second best, 0..2.
        tokens: Token equivalent of the context; 0 when unknown.
    """
    hard, soft = fired(policy, confidence, margin, lane, tokens)
    if budget is not None:
        budget.earn()
    if not hard and not soft:
        return ANSWER
    if budget is None or hard or budget.affords():
        if budget is not None:
            budget.spend()
        return Decision(True, hard + soft)
    return Decision(False, soft, SHED_BUDGET)
