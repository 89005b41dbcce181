"""The scores that a policy asks for, of a micro-batch of predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from amn.bank.bank import Bank, CellBank
from amn.bank.settings import Guard
from amn.errors import ConfigError
from amn.gate.gain import Calibration
from amn.policy import MEAN_TOP_K, RAW, ConfidenceRule, EscalationPolicy

Cosines = NDArray[np.float32]


class Columns(NamedTuple):
    """Scores of B rows, each (B,). A gain is a float64: rounded it could fall on the other side of a
    threshold."""

    confidence: NDArray[np.floating]
    margin: NDArray[np.floating]
    gain: NDArray[np.floating]

    def part(self, rows: slice) -> Columns:
        """The scores of some rows."""
        return Columns(self.confidence[rows], self.margin[rows], self.gain[rows])


class GateScores:
    """Scores predictions as a policy asks.

    Attributes:
        banked: True if the reference bank is asked.

    Raises:
        ConfigError: The policy asks for what the bank does not have, or for a bank where there is none.
    """

    def __init__(
        self, policy: EscalationPolicy, bank: Bank | None, calibration: Calibration | None = None
    ) -> None:
        if policy.needs_bank and bank is None:
            raise ConfigError(f"policy {policy.name} needs a reference bank for its scores")
        self._bank = bank if policy.needs_bank else None
        self.banked = self._bank is not None
        self._gain = calibration.scorer() if calibration and policy.gain is not None else None
        self._mean: Callable[[Cosines], Cosines] | None = None
        self._multiplicity: NDArray[np.integer] | None = None
        if self._bank is not None:
            self._use(self._bank, policy)

    def _use(self, bank: Bank, policy: EscalationPolicy) -> None:
        if isinstance(bank, CellBank):
            bank.guard = Guard.of(policy)  # where it must not miss anything
        if policy.confidence is not None and policy.confidence.method == MEAN_TOP_K:
            self._mean = mean_top_k(bank.vectors, policy.confidence)
        if policy.margin is not None and policy.margin.method == RAW:
            self._multiplicity = bank.multiplicity

    def __call__(self, contexts: Cosines, vectors: Cosines, soft: NDArray[np.bool_] | None = None) -> Columns:
        """(B, 5, 768) and (B, 768) -> scores (B,); 0, at no cost, where `soft` (B,) is false."""
        if soft is not None:
            made = Columns(*np.zeros((3, len(vectors))))
            if soft.any():
                for column, found in zip(made, self(contexts[soft], vectors[soft]), strict=True):
                    column[soft] = found
            return made
        confidences: NDArray[np.floating] = np.zeros(len(vectors))
        margins = gains = confidences
        if self._bank is not None:
            best, second, ids = self._bank.top2(vectors)
            confidences, margins = best, best - second  # cosines of unit vectors in float32
            if self._multiplicity is not None:
                margins = np.where(self._multiplicity[ids] > 1, np.float32(0), margins)
            if self._mean is not None:
                confidences = self._mean(vectors)
        if self._gain is not None:
            gains = self._gain(contexts, vectors)
        return Columns(confidences, margins, gains)


def mean_top_k(vectors: NDArray[np.floating], rule: ConfidenceRule) -> Callable[[Cosines], Cosines]:
    """Mean cosine of the `k` best in a seeded sample without replacement; all of a smaller bank."""
    if len(vectors) < rule.k:
        raise ConfigError(f"confidence.k is {rule.k}, and the bank has {len(vectors)} vectors; use fewer")
    count = min(rule.sample_count, len(vectors))
    rows = np.sort(np.random.default_rng(rule.seed).choice(len(vectors), size=count, replace=False))
    sample = np.ascontiguousarray(vectors[rows], dtype=np.float32)  # (count, 768)

    def score(predictions: Cosines) -> Cosines:
        cosines = predictions @ sample.T  # (B, count)
        means: Cosines = torch.from_numpy(cosines).topk(rule.k, dim=1, sorted=False).values.mean(1).numpy()
        return means

    return score
