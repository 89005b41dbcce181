"""Decision logs: the lines that a worker's `--decision-log` and `amn calibrate` write, read back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from amn.gate.escalation import Scores
from amn.policy import BLEND, EscalationPolicy
from ops.errors import FileRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """One decision.

    Attributes:
        at_ms: When; 0 when the log does not say.
        confidence, margin: By method.    gain: Predicted; None when it was not asked for.
        escalated: Whether it was, at the time.
        article: Of the text, for intervals; -1 when the log does not say.
        amn_cosine, fallback_cosine, final_cosine: With the truth, where it is known: of AMN's answer,
            of the fallback's, and of the two blended.
    """

    lane: str
    tokens: int
    domain: str
    at_ms: int = 0
    confidence: dict[str, float] = field(default_factory=dict)
    margin: dict[str, float] = field(default_factory=dict)
    gain: float | None = None
    escalated: bool = False
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
    """All decisions, each with its truth where a later line tells it.

    Raises:
        FileRefused: It cannot be read, or a line is not of a decision log.
    """
    found: list[dict[str, Any]] = []
    truths: dict[str, float] = {}
    for number, line in _lines(path):
        try:
            if line.get("kind") == "truth":
                truths[line["key"]] = float(line["amn_cosine"])
            else:
                found.append(line)
        except (KeyError, TypeError, ValueError) as error:
            raise FileRefused(f"{path}, line {number} is not of a decision log: {error!r}") from error
    try:
        return [_logged(line, truths) for line in found]
    except (KeyError, TypeError) as error:
        raise FileRefused(f"{path} is not a decision log: {error!r} is missing or of another type") from error


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as stored:
            for number, text in enumerate(stored, start=1):
                line = json.loads(text)
                if not isinstance(line, dict):
                    raise FileRefused(f"{path}, line {number} is not a JSON object")
                yield number, line
    except (OSError, ValueError) as error:
        raise FileRefused(f"{path} cannot be read as JSON lines: {error}") from error


def _logged(line: dict[str, Any], truths: dict[str, float]) -> Logged:
    known = {field.name for field in fields(Logged)} & line.keys()
    values: dict[str, Any] = {name: line[name] for name in known | {"lane", "tokens", "domain"}}
    if (truth := truths.get(line.get("key", ""))) is not None:
        values.setdefault("amn_cosine", truth)
    return Logged(**values | {"escalated": line.get("escalate", False)})
