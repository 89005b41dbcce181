"""The settings of an index, as a bank's manifest holds them, and the rules that its search must get right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from amn.checked import Checked, checked
from amn.policy import TOP1, EscalationPolicy

Vectors = NDArray[np.float32]
Rows = NDArray[np.bool_]

#: No cosine is below the one, no margin below the other.
NO_CONFIDENCE, NO_MARGIN = -2.0, 0.0
#: Vectors that a cell should have at least; only small banks come near it.
_LEAST_A_CELL = 16


def _count(default: int, least: int = 1) -> Any:
    advice = f"it must be a whole number of at least {least}"
    return checked(lambda v: type(v) is int and v >= least, advice, default)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings(Checked):
    """The settings of indexing and searching a bank, as they stand in its manifest.

    Attributes:
        cells: K.    dimensions: d, of the projection.    groups: 4-bit codes a reference.
        probes, rerank: Cells of the first pass, and candidates whose cosine is computed for all.
        probes_wide, rerank_wide: Cells after both passes, and candidates that the second one adds of
            either's cells. Neither pass searches more cells than there are.
        within: Cells that score this much less than the nearest one are passed over.
        seed: Seed of the samples that the index is fitted on.

    Raises:
        ConfigError: A number of cells or candidates that no search can have.
    """

    cells: int = _count(1024)
    dimensions: int = _count(192)
    groups: int = _count(96)
    probes: int = _count(20)
    probes_wide: int = _count(60)
    rerank: int = _count(80)
    rerank_wide: int = _count(160, least=0)
    within: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        for name in ("probes", "probes_wide"):
            object.__setattr__(self, name, min(getattr(self, name), self.cells))

    def fitted(self, count: int) -> Self:
        """The settings for a bank of so many vectors: no more cells than it can fill."""
        return replace(self, cells=min(self.cells, max(1, count // _LEAST_A_CELL)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """The rules that a search must not get wrong.

    Attributes:
        confidence, margin: An answer is kept from these cosines on; `NO_CONFIDENCE` and `NO_MARGIN`
            where there is no such rule.
        reach: Best cosines this little below `confidence` are looked at twice.
    """

    confidence: float = 0.70
    margin: float = 0.02
    reach: float = 0.01

    @classmethod
    def of(cls, policy: EscalationPolicy) -> Self:
        """The thresholds of a policy's rules, as far as they look at the two best cosines."""
        rule = policy.confidence
        return cls(
            confidence=rule.below if rule is not None and rule.method == TOP1 else NO_CONFIDENCE,
            margin=policy.margin.below if policy.margin is not None else NO_MARGIN,
        )

    def keeps(self, best: Vectors, second: Vectors) -> Rows:
        """Marks the rows where no rule fires, (B,)."""
        kept: Rows = (best >= self.confidence) & (best - second >= self.margin)
        return kept

    def undecided(self, best: Vectors, second: Vectors) -> Rows:
        """Marks the rows where a miss would matter, (B,)."""
        near: Rows = (best >= self.confidence - self.reach) & (best < self.confidence)
        if self.margin <= NO_MARGIN:
            return near  # a best cosine that was found is proof enough
        return near | self.keeps(best, second)
