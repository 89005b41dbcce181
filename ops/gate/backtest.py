"""A policy is run over logged scores: rules that fire, escalations, requests that are shed, and gain."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from amn.gate.escalation import Allowance, Decision, Scores, decide, hard_rules, threshold_for
from amn.policy import ENFORCE, EscalationPolicy
from ops.gate.log import Logged

#: Requests between two settings of the threshold: a worker does it about once a second.
_AIM_EVERY = 64
_BURST = 5.0
_EAGER = 1.1


class LocalBudget:
    """The shared budget's bucket for one worker, without a server: for replays."""

    def __init__(self, policy: EscalationPolicy, allowance: Allowance) -> None:
        self._policy = policy
        self._allowance = allowance
        self._hard = 0

    def earn(self) -> None:
        """After each request."""
        allowance, budget = self._allowance, self._policy.budget
        allowance.granted += budget.rate - budget.reserve - (allowance.hard - self._hard)
        self._hard = allowance.hard
        allowance.granted = min(allowance.granted, allowance.soft + _BURST)
        if budget.mode == ENFORCE and allowance.seen % _AIM_EVERY == 0 and allowance.wanted:
            left = max(0.0, budget.rate - budget.reserve - allowance.hard / allowance.seen)
            share = _EAGER * left * allowance.seen / allowance.wanted
            allowance.threshold = threshold_for(allowance.candidates(), share)


@dataclass(slots=True)
class Counts:
    """Requests, and of them flagged, escalated and shed."""

    requests: int = 0
    flagged: int = 0
    escalated: int = 0
    shed: int = 0

    def add(self, decision: Decision) -> None:
        """Counts one more decision."""
        self.requests += 1
        self.flagged += bool(decision.reasons)
        self.escalated += decision.escalate
        self.shed += bool(decision.shed)

    def to_json(self) -> dict[str, float]:
        """The number of requests, and the shares."""
        n = max(self.requests, 1)
        rates = {name: round(getattr(self, name) / n, 5) for name in ("flagged", "escalated", "shed")}
        return {"requests": self.requests} | {f"{name}_rate": rate for name, rate in rates.items()}


@dataclass(slots=True, kw_only=True)
class Replay:
    """The outcome.

    Attributes:
        unscored: Lines that lack a score which the policy asks for; they are left out.
        rules: How often each fired.    shed: Why flagged requests were not escalated.
        lanes, hours, domains: Counts by name; hours are UTC.
        amn, final: Cosines with the truth, where known: of AMN alone, and of the final answers.
    """

    policy: str
    total: Counts = field(default_factory=Counts)
    unscored: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    shed: Counter[str] = field(default_factory=Counter)
    lanes: dict[str, Counts] = field(default_factory=lambda: defaultdict(Counts))
    hours: dict[str, Counts] = field(default_factory=lambda: defaultdict(Counts))
    domains: dict[str, Counts] = field(default_factory=lambda: defaultdict(Counts))
    amn: list[float] = field(default_factory=list)
    final: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values; rates are shares of all requests."""
        n = max(self.total.requests, 1)
        return {
            "policy": self.policy,
            **self.total.to_json(),
            "unscored": self.unscored,
            **{
                name: {key: round(count / n, 5) for key, count in counts.most_common()}
                for name, counts in (("rules", self.rules), ("shed", self.shed))
            },
            **{
                name: {key: counts.to_json() for key, counts in sorted(parts.items())}
                for name, parts in (("lanes", self.lanes), ("domains", self.domains), ("hours", self.hours))
            },
            "cosine": {
                "n": len(self.amn),
                "amn": round(float(np.mean(self.amn)), 5) if self.amn else None,
                "final": round(float(np.mean(self.final)), 5) if self.final else None,
            },
        }


def replay(lines: Sequence[Logged], policy: EscalationPolicy) -> Replay:
    """Decides every logged request anew, in order, with one bucket for all."""
    made = Replay(policy=policy.policy_id("replayed"))
    allowance = Allowance()
    budget = LocalBudget(policy, allowance)
    for line in lines:
        hard = hard_rules(policy, line.lane, line.tokens)
        scores = Scores() if hard else line.scores(policy)
        if scores is None:
            made.unscored += 1
            continue
        decision = decide(policy, allowance, hard, scores)
        budget.earn()
        _note(made, line, decision, line.after(policy))
    return made


def _note(made: Replay, line: Logged, decision: Decision, after: float | None) -> None:
    made.total.add(decision)
    made.lanes[line.lane].add(decision)
    made.domains[line.domain or "none"].add(decision)
    if line.at_ms:
        hour = datetime.fromtimestamp(line.at_ms / 1000, UTC)
        made.hours[f"{hour:%Y-%m-%d %H}"].add(decision)
    made.rules.update(decision.reasons)
    if decision.shed:
        made.shed[decision.shed] += 1
    final = after if decision.escalate else line.amn_cosine
    if line.amn_cosine is not None and final is not None:
        made.amn.append(line.amn_cosine)
        made.final.append(final)
