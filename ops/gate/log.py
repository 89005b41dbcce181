"""Decisions with their scores: the lines of a decision log, or of the shipped sample, scored now."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from amn.gate.escalation import Scores
from amn.policy import BLEND, EscalationPolicy, load_policy
from ops.errors import FileRefused
from ops.sample import Sample

_NEEDED = ("lane", "tokens", "domain")
_TYPES = {"lane": str, "tokens": int, "domain": str, "confidence": dict, "margin": dict, "at_ms": int}


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """One decision.

    Attributes:
        at_ms: When; 0 when the log does not say.
        confidence, margin: By method.    gain: Predicted; None when it was not asked for.
        article: Number of the text, for intervals; -1 when the log does not say.
        amn_cosine, fallback_cosine, final_cosine: Cosines with the truth, where it is known, of AMN's
            answer, of the fallback's, and of the two blended.
    """

    lane: str
    tokens: int
    domain: str
    at_ms: int = 0
    confidence: dict[str, float] = field(default_factory=dict)
    margin: dict[str, float] = field(default_factory=dict)
    gain: float | None = None
    escalate: bool = False
    article: int = -1
    amn_cosine: float | None = None
    fallback_cosine: float | None = None
    final_cosine: float | None = None

    def after(self, policy: EscalationPolicy) -> float | None:
        """Cosine of the final answer of an escalation, by the policy's answer rule."""
        return self.final_cosine if policy.answer.rule == BLEND else self.fallback_cosine

    def scores(self, policy: EscalationPolicy) -> Scores | None:
        """Returns the scores that the policy would have seen; None when the log lacks one."""
        confidence = self.confidence.get(policy.confidence_method)
        margin = self.margin.get(policy.margin_method)
        missing = policy.confidence is not None and confidence is None
        missing |= policy.margin is not None and margin is None
        missing |= policy.gain is not None and self.gain is None
        return None if missing else Scores(confidence or 0.0, margin or 0.0, self.gain or 0.0)


def read_log(path: Path) -> list[Logged]:
    """All decisions of a log, each with the truth that a later line tells.

    Raises:
        FileRefused: It cannot be read, or a line is not of a decision log.
    """
    found: list[tuple[str, Logged]] = []
    truths: dict[str, float] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise FileRefused(f"{path} cannot be read as JSON lines: {error}") from error
    for number, text in enumerate(lines, start=1):
        try:
            line = dict(json.loads(text))
            if line.get("kind") == "truth":
                truths[line["key"]] = float(line["amn_cosine"])
            else:
                found.append((line.get("key", ""), _logged(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise FileRefused(
                f"{path}, line {number} is not of a decision log: {error!r}; give a file that "
                "`amn worker amn --decision-log` or `amn calibrate` wrote"
            ) from error
    return [
        replace(line, amn_cosine=truths[key]) if key in truths and line.amn_cosine is None else line
        for key, line in found
    ]


def _logged(line: dict[str, Any]) -> Logged:
    for name, kind in _TYPES.items():
        if (name in line or name in _NEEDED) and not isinstance(line[name], kind):
            raise TypeError(f"{name} is {line[name]!r}")
    return Logged(**{one.name: line[one.name] for one in fields(Logged) if one.name in line})


def score_sample(sample: Sample, artifacts: Path) -> list[Logged]:
    """One line a window of the shipped sample, by both models; `domain` is "unseen" or "known"."""
    from amn.gate.gain import blend, features, load_calibration
    from amn.gate.scores import GateScores
    from amn.predictor import Predictor

    calibration = load_calibration(artifacts / "gate_calibration")
    amn = Predictor.open(artifacts / "production_model", artifacts / "reference_bank")
    fallback = Predictor.open(artifacts / "fallback_accuracy")
    at = sample.start
    contexts, truth = sample.vectors[at[:, None] + np.arange(5)], sample.vectors[at + 5]
    fast, slow = amn.forward(contexts), fallback.predict(contexts)
    final = blend(fast, slow, calibration.weight(features(contexts, fast)))
    scores = GateScores(load_policy("calibrated"), amn.bank, calibration)(contexts, fast)
    cosines = [np.vecdot(answers, truth) for answers in (fast, slow, final)]
    columns = zip(*(column.tolist() for column in (*scores, *cosines)), strict=True)
    return [
        Logged(
            lane="general",
            tokens=0,
            domain="unseen" if sample.ood[i] else "known",
            confidence={"top1": confidence},
            margin={"distinct": margin},
            gain=gain,
            article=int(sample.article[i]),
            amn_cosine=of_amn,
            fallback_cosine=of_fallback,
            final_cosine=of_both,
        )
        for i, (confidence, margin, gain, of_amn, of_fallback, of_both) in enumerate(columns)
    ]
