"""The scores of the two soft rules, by the method that the policy names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from amn.bank.index import CellBank
from amn.bank.index_settings import Guard
from amn.bank.neighbours import Bank
from amn.errors import ConfigError
from amn.policy import MEAN_TOP_K, RAW, ConfidenceRule, EscalationPolicy

Cosines = NDArray[np.float32]


class GateScores:
    """Confidence and margin of predictions, (B, 768) -> (B,) and (B,)."""

    def __init__(self, policy: EscalationPolicy, bank: Bank) -> None:
        self._bank = bank
        if isinstance(bank, CellBank):
            bank.guard = Guard.of(policy)  # where it must not miss anything
        rule = policy.confidence
        self._mean: Callable[[Cosines], Cosines] | None = None
        if rule is not None and rule.method == MEAN_TOP_K:
            self._mean = mean_top_k(bank.vectors, rule)
        self._multiplicity: NDArray[np.integer] | None = None
        if policy.margin is not None and policy.margin.method == RAW:
            self._multiplicity = getattr(bank, "multiplicity", None)
            if self._multiplicity is None:
                raise ConfigError(
                    "margin.method is 'raw', and the bank kept no multiplicities; use 'distinct'"
                )

    def __call__(self, predictions: Cosines) -> tuple[Cosines, Cosines]:
        """Scores a batch; cosines of unit vectors in float32."""
        best, second, ids, *_ = self._bank.top2(predictions)
        margins = best - second
        if self._multiplicity is not None:
            margins = np.where(self._multiplicity[ids] > 1, np.float32(0), margins)
        return (best if self._mean is None else self._mean(predictions)), margins


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
