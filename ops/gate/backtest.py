"""A policy run over logged scores: rules that fire, escalations, requests that are shed, and gain."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from amn.gate.escalation import Allowance, Decision, Scores, decide, hard_rules, threshold_for
from amn.policy import ENFORCE, BudgetRule, EscalationPolicy
from ops.gate.log import Logged

#: Requests between two settings of the threshold: a worker does it about once a second.
_AIM_EVERY = 64
_BURST = 5.0
_EAGER = 1.1

Decided = list[tuple[Logged, Decision]]


def backtest(lines: Iterable[Logged], policy: EscalationPolicy) -> dict[str, Any]:
    """Decides every logged request anew, in order, with one bucket for all; rates are shares of all requests.

    Lines that lack a score which the policy asks for are left out, and counted as `unscored`.
    """
    allowance, decided, unscored = Allowance(), Decided(), 0
    for line in lines:
        hard, hard_before = hard_rules(policy, line.lane, line.tokens), allowance.hard
        scores = Scores() if hard else line.scores(policy)
        if scores is None:
            unscored += 1
            continue
        decided.append((line, decide(policy, allowance, hard, scores)))
        _earn(policy.budget, allowance, allowance.hard - hard_before)
    decisions = [decision for _, decision in decided]
    rules = Counter(reason for decision in decisions for reason in decision.reasons)
    shed = Counter(decision.shed for decision in decisions if decision.shed)
    return {
        "policy": policy.policy_id("replayed"),
        **_rates(decisions),
        "unscored": unscored,
        "rules": {name: round(count / len(decisions), 5) for name, count in rules.most_common()},
        "shed": {name: round(count / len(decisions), 5) for name, count in shed.most_common()},
        "lanes": _by(decided, lambda line: line.lane),
        "domains": _by(decided, lambda line: line.domain or "none"),
        "hours": _by(decided, _hour),
        "cosine": _cosine(decided, policy),
    }


def _earn(budget: BudgetRule, allowance: Allowance, hard: int) -> None:
    """The shared budget's bucket for one worker, without a server, after each request.

    Args:
        hard: Whether a hard rule escalated it.
    """
    allowance.granted += budget.rate - budget.reserve - hard
    allowance.granted = min(allowance.granted, allowance.soft + _BURST)
    if budget.mode == ENFORCE and allowance.seen % _AIM_EVERY == 0 and allowance.wanted:
        left = max(0.0, budget.rate - budget.reserve - allowance.hard / allowance.seen)
        share = _EAGER * left * allowance.seen / allowance.wanted
        allowance.threshold = threshold_for(allowance.candidates(), share)


def _rates(decisions: Sequence[Decision]) -> dict[str, float]:
    n = max(len(decisions), 1)
    return {
        "requests": len(decisions),
        "flagged_rate": round(sum(bool(one.reasons) for one in decisions) / n, 5),
        "escalated_rate": round(sum(one.escalate for one in decisions) / n, 5),
        "shed_rate": round(sum(bool(one.shed) for one in decisions) / n, 5),
    }


def _by(decided: Decided, name_of: Callable[[Logged], str]) -> dict[str, dict[str, float]]:
    groups: defaultdict[str, list[Decision]] = defaultdict(list)
    for line, decision in decided:
        groups[name_of(line)].append(decision)
    return {name: _rates(groups[name]) for name in sorted(groups) if name}


def _hour(line: Logged) -> str:
    return f"{datetime.fromtimestamp(line.at_ms / 1000, UTC):%Y-%m-%d %H}" if line.at_ms else ""


def _cosine(decided: Decided, policy: EscalationPolicy) -> dict[str, float | None]:
    """Mean cosines with the truth, where known: of AMN alone, and of the final answers."""
    pairs = [
        (line.amn_cosine, line.after(policy) if decision.escalate else line.amn_cosine)
        for line, decision in decided
    ]
    known = np.array([pair for pair in pairs if None not in pair], dtype=np.float64)
    amn, final = known.mean(0).round(5).tolist() if len(known) else (None, None)
    return {"n": len(known), "amn": amn, "final": final}
