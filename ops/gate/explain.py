"""Explains one request: every rule with its value, what came of it, and by which artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.errors import ConfigError
from amn.gate.escalation import (
    ASKED_FOR,
    HIGH_STAKES_LANE,
    LONG_CONTEXT,
    LOW_CONFIDENCE,
    THIN_MARGIN,
    WORTH_ESCALATING,
    Allowance,
    Scores,
    decide,
    hard_rules,
    soft_rules,
)
from amn.gate.gain import FEATURES, Calibration, features, load_calibration
from amn.policy import EscalationPolicy, load_policy
from producer.messages import Request

#: Not a rule: what a soft rule needs beside itself.
_LEAST_GAIN = "least gain"


def explain(request: Request, policy_name: str, artifacts: Path) -> dict[str, Any]:
    """Explains the gate's decision on a request, the budget left aside.

    Raises:
        AmnError: The policy or an artifact does not hold.
    """
    from amn.gate.scores import GateScores
    from amn.predictor import Predictor

    policy = load_policy(policy_name)
    calibration = load_calibration(artifacts / "gate_calibration") if policy.needs_calibration else None
    predictor = Predictor.open(artifacts / "production_model", artifacts / "reference_bank")
    if predictor.bank is None:
        raise ConfigError("no reference bank was loaded")
    context = np.array(request.context, dtype=np.float32)[None]  # decoded ones are read-only
    vectors = predictor.forward(context)
    columns = GateScores(policy, predictor.bank, calibration)(context, vectors)
    scores = Scores(*(float(column[0]) for column in columns))
    hard = hard_rules(policy, request.lane, request.tokens, request.escalate)
    calibration_id = calibration.calibration_id if calibration else ""
    decision = decide(policy, Allowance.unlimited(), hard, scores)
    made = {
        "id": request.id,
        "rules": _rules(policy, request, scores),
        "escalate": decision.escalate,
        "reasons": list(decision.reasons),
        "shed": decision.shed,
        "budget": f"{policy.budget.mode}, {policy.budget.rate:g} over {policy.budget.window_s} s",
        "answer": policy.answer.rule,
        "chain": list(policy.chain.tiers),
        "model": predictor.model_id,
        "bank": predictor.bank.bank_id,
        "policy": policy.policy_id(calibration_id),
        "calibration": calibration_id,
    }
    return made | (_calibrated(calibration, features(context, vectors)) if calibration else {})


def _rules(policy: EscalationPolicy, request: Request, scores: Scores) -> list[dict[str, Any]]:
    """One row a rule of the policy. All are shown, also soft ones that a hard rule makes moot."""
    hard = hard_rules(policy, request.lane, request.tokens, request.escalate)
    fired = (*hard, *soft_rules(policy, scores))
    lanes = ", ".join(policy.hard.lanes) or "none"
    rows: list[tuple[str, str, object, str]] = [
        (HIGH_STAKES_LANE, "hard", request.lane, f"one of {lanes}"),
        (LONG_CONTEXT, "hard", request.tokens, f"above {policy.hard.tokens_max}"),
        (ASKED_FOR, "hard", request.escalate, "true"),
    ]
    for rule, name, method, score in (
        (policy.confidence, LOW_CONFIDENCE, policy.confidence_method, scores.confidence),
        (policy.margin, THIN_MARGIN, policy.margin_method, scores.margin),
    ):
        if rule is not None:
            rows.append((name, method, round(score, 6), f"below {rule.below:g}"))
    if policy.gain is not None:
        name = WORTH_ESCALATING if policy.gain.rule else _LEAST_GAIN
        fired += (_LEAST_GAIN,) if scores.gain > policy.gain.min else ()
        rows.append((name, "calibrated", round(scores.gain, 8), f"above {policy.gain.min:g}"))
    names = ("rule", "method", "value", "fires")
    return [dict(zip(names, row, strict=True)) | {"fired": row[0] in fired} for row in rows]


def _calibrated(calibration: Calibration, rows: NDArray[np.float64]) -> dict[str, Any]:
    expected = (float(one.predict(rows)[0]) for one in calibration.expected)
    models = (calibration.amn, calibration.fallback)
    return {
        "features": {name: round(float(value), 6) for name, value in zip(FEATURES, rows[0], strict=True)},
        "weight": float(calibration.weight(rows)[0]),
        "expected": {name: round(value, 4) for name, value in zip(models, expected, strict=True)},
    }
