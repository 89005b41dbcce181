"""The decision log: a sample of what the gate decided, as JSON lines, for `amn policy replay`.

A line of kind `decision` has what the rules looked at and what came of it. When the next context of
the same sequence passes, a line of kind `truth` tells how well AMN's answer was: its newest vector is
what really came next. Only requests that the shadow sample holds are logged, so that workers agree
which those are.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from amn.gate.escalation import HIGH_STAKES_LANE, LONG_CONTEXT, Decision, Scores
from amn.output import strict_json
from amn.policy import EscalationPolicy
from producer.messages import Request
from producer.sampling import sample_key, sampled

_LOG = structlog.get_logger("amn.decisions")
#: Predictions that wait for their truth; the oldest are forgotten.
_WAITING_MAX = 1_000


class DecisionLog:
    """Appends to one file; lines are written whole, so that several workers may share it."""

    def __init__(self, path: Path, policy: EscalationPolicy, rate: float, salt: str) -> None:
        self._file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o666)
        self._torn = False
        self._policy = policy
        self._rate = rate
        self._salt = salt
        self._waiting: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def note(
        self, request: Request, scores: Scores, decision: Decision, vector: NDArray[np.float32], now_ms: float
    ) -> None:
        """Logs a decision of the sample, and the truth that a request brings for an earlier one."""
        self._truth(request)
        key, policy = sample_key(request.id, request.sequence, request.position), self._policy
        if not sampled(key, self._rate, self._salt):
            return
        line: dict[str, Any] = {"kind": "decision", "at_ms": round(now_ms), "key": key}
        line |= {"lane": request.lane, "tokens": request.tokens, "domain": request.domain}
        scored = not {HIGH_STAKES_LANE, LONG_CONTEXT}.intersection(decision.reasons)
        if scored and policy.needs_bank:
            line["confidence"] = {policy.confidence_method: round(scores.confidence, 6)}
            line["margin"] = {policy.margin_method: round(scores.margin, 6)}
        if scored and policy.gain is not None:
            line["gain"] = round(scores.gain, 8)
        line |= {"escalate": decision.escalate, "reasons": decision.reasons, "shed": decision.shed}
        self._write(line | {"policy": policy.name})
        if request.sequence:
            self._waiting[key] = vector.copy()
            if len(self._waiting) > _WAITING_MAX:
                self._waiting.popitem(last=False)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _truth(self, request: Request) -> None:
        if not request.sequence or request.position < 1:
            return
        key = sample_key(request.id, request.sequence, request.position - 1)
        vector = self._waiting.pop(key, None)
        if vector is not None:
            truth = np.asarray(request.context[-1], dtype=np.float32)
            self._write({"kind": "truth", "key": key, "amn_cosine": round(float(vector @ truth), 6)})

    def _write(self, fields: dict[str, Any]) -> None:
        """A line at a time. One that finds no room is lost: no request fails for it."""
        line = f"{chr(10) * self._torn}{strict_json(fields)}\n".encode()
        try:
            self._torn = os.write(self._file, line) < len(line)
        except OSError as error:
            _LOG.warning("decision_not_logged", error=str(error))
