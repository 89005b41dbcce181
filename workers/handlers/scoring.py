"""The scores that a policy asks for, of a micro-batch of predictions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amn.gate.escalation import Allowance, Scores
from amn.gate.gain import Calibration
from amn.gate.scores import GateScores
from amn.policy import EscalationPolicy
from workers.handlers.decisions import DecisionLog

if TYPE_CHECKING:  # the model's libraries are loaded by whoever builds the predictor
    from amn.predictor import Predictor


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Policy, calibration and budget of one AMN worker.

    Attributes:
        policy: The rules.
        calibration: Needed by policies that look at the gain or blend.
        allowance: What the budget leaves; shared with the thread that settles it.
        log: Where sampled decisions go; None for nowhere.
    """

    policy: EscalationPolicy
    calibration: Calibration | None = None
    allowance: Allowance = field(default_factory=Allowance.unlimited)
    log: DecisionLog | None = None

    @property
    def policy_id(self) -> str:
        """Stamped on every answer."""
        return self.policy.policy_id(self.calibration.calibration_id if self.calibration else "")


class Columns(NamedTuple):
    """Scores of B rows, each (B,). A gain is a float64: rounded it could fall on the other side of a
    threshold."""

    confidence: NDArray[np.floating]
    margin: NDArray[np.floating]
    gain: NDArray[np.floating]

    def part(self, rows: slice) -> Columns:
        """The scores of some rows."""
        return Columns(self.confidence[rows], self.margin[rows], self.gain[rows])

    def rows(self) -> list[Scores]:
        """One object a row."""
        return list(map(Scores, self.confidence.tolist(), self.margin.tolist(), self.gain.tolist()))


class GateScorer:
    """Scores predictions as a policy asks.

    Attributes:
        banked: Whether the reference bank is asked.
    """

    def __init__(self, predictor: Predictor, gate: Gate) -> None:
        policy = gate.policy
        self._calibration = gate.calibration if policy.gain is not None else None
        if policy.needs_bank and predictor.bank is None:
            raise ValueError(f"policy {policy.name} needs a reference bank for its scores")
        self._bank = GateScores(policy, predictor.bank) if policy.needs_bank and predictor.bank else None
        self.banked = self._bank is not None

    def __call__(self, contexts: NDArray[np.float32], vectors: NDArray[np.float32]) -> list[Scores]:
        """(B, 5, 768) and (B, 768) -> one `Scores` a row."""
        return self.columns(contexts, vectors).rows()

    def columns(
        self,
        contexts: NDArray[np.float32],
        vectors: NDArray[np.float32],
        soft: NDArray[np.bool_] | None = None,
    ) -> Columns:
        """Scores as arrays (B,); where `soft` (B,) is false they are 0, and cost nothing."""
        zeros = np.zeros(len(vectors))
        if soft is not None:
            made = Columns(zeros, zeros.copy(), zeros.copy())
            if soft.any():
                for column, found in zip(made, self.columns(contexts[soft], vectors[soft]), strict=True):
                    column[soft] = found
            return made
        confidences, margins = self._bank(vectors) if self._bank is not None else (zeros, zeros)
        calibration = self._calibration
        gains = zeros if calibration is None else calibration.predict(contexts, vectors)
        return Columns(confidences, margins, gains)
