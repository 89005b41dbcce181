"""Decisions of an approximate bank beside those of an exact search: at its build, and live.

Two banks of one size can differ much in how often a search misses something. So each is measured when it
is built: the exact answers to held-out queries are computed once, and the narrowest of `WIDTHS` is taken
whose decisions agree often enough. The sample may have a part of the errors that are allowed, because
other queries differ from it; and less of the unsafe ones.

Of the live requests, workers/handlers/recheck.py draws some and compares them later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amn.bank.bank import CellBank, Neighbours, exact_top2
from amn.bank.settings import Guard, IndexSettings

Vectors = NDArray[np.float32]

#: A bank must meet these shares of the requests.
AGREE_MIN, UNSAFE_MAX, BIAS_MAX = 0.997, 0.001, 0.002
_SHARE, _UNSAFE_SHARE = 2 / 3, 0.5
#: (probes, rerank, probes_wide, rerank_wide, within), the cheapest first.
WIDTHS = (
    (10, 64, 32, 64, 0.13),
    (12, 64, 40, 96, 0.13),
    (14, 64, 40, 96, 0.13),
    (16, 64, 48, 128, 0.15),
    (18, 72, 54, 128, 0.15),
    (20, 80, 60, 160, 0.15),
    (26, 96, 80, 192, 0.17),
    (34, 128, 110, 256, 0.2),
    (48, 192, 160, 384, 0.3),
)
_BATCH = 32
#: Knuth's multiplier: spreads the bits of a number over its upper ones.
_SPREAD = np.uint32(2654435761)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The decisions of an index beside those of an exact search, as shares of the queries.

    Attributes:
        queries: Number of queries.
        agree: Equal decisions.    unsafe: Kept where an exact search would have escalated.
        bias: Rate of escalations, the index's minus the exact one.
        both_right: Both cosines were found.
        confidence, margin: The thresholds of the decision.
    """

    queries: int
    agree: float
    unsafe: float
    bias: float
    both_right: float
    confidence: float
    margin: float

    @property
    def met(self) -> bool:
        """True if this is as good as a bank must be."""
        return self.within(1.0, 1.0)

    def within(self, share: float = _SHARE, unsafe_share: float = _UNSAFE_SHARE) -> bool:
        """True if no more than these shares of the errors that are allowed were made."""
        return (
            1 - self.agree <= share * (1 - AGREE_MIN) + 1e-12
            and self.unsafe <= unsafe_share * UNSAFE_MAX
            and abs(self.bias) <= share * BIAS_MAX
        )

    def stored(self) -> dict[str, Any]:
        """The values for the manifest."""
        return {name: round(value, 6) for name, value in asdict(self).items()} | {"met": self.met}


def agreement(bank: CellBank, queries: Vectors, exact: Neighbours) -> Agreement:
    """Compares the answers to queries (n, 768) with those of an exact search."""
    parts = [bank.top2(queries[i : i + _BATCH]) for i in range(0, len(queries), _BATCH)]
    best, second = (np.concatenate([getattr(part, name) for part in parts]) for name in ("best", "second"))
    guard = bank.guard
    ours, true = guard.keeps(best, second), guard.keeps(exact.best, exact.second)
    right = (np.abs(best - exact.best) < 1e-4) & (np.abs(second - exact.second) < 1e-4)
    return Agreement(
        queries=len(queries),
        agree=float((ours == true).mean()),
        unsafe=float((ours & ~true).mean()),
        bias=float(true.mean() - ours.mean()),
        both_right=float(right.mean()),
        confidence=guard.confidence,
        margin=guard.margin,
    )


def tune(
    bank: CellBank, queries: Vectors, guard: Guard, on_rows: Callable[[int], None] = lambda done: None
) -> tuple[IndexSettings, Agreement]:
    """The narrowest widths that are good enough, or the widest; and how well they did.

    Args:
        queries: Shape (n, 768), unit norm; predictions for texts that are not in the bank.
        guard: The thresholds to decide by.
        on_rows: Told how many references were compared exactly.
    """
    exact = exact_top2(bank.vectors, queries, on_rows)
    bank.guard = guard
    for widths in WIDTHS:
        bank.settings = widened(bank.settings, widths)
        found = agreement(bank, queries, exact)
        if found.within():
            break
    return bank.settings, found


def widened(settings: IndexSettings, widths: tuple[int, int, int, int, float]) -> IndexSettings:
    """Settings of one of `WIDTHS`."""
    names = ("probes", "rerank", "probes_wide", "rerank_wide", "within")
    return replace(settings, **dict(zip(names, widths, strict=True)))  # type: ignore[arg-type]


class Rechecked(NamedTuple):
    """The result of a recheck.

    Attributes:
        checked: Requests compared.
        agreed: The two rules decide as an exact search would have them decide.
        unsafe: Kept, where an exact search would have escalated.
    """

    checked: int
    agreed: int
    unsafe: int


def drawn(queries: Vectors, one_in: int) -> NDArray[np.intp]:
    """The rows of (B, 768) that are compared, one in so many.

    Drawn by the bits of a prediction: a request that comes again is drawn again or never, whichever
    worker and batch it is in.
    """
    bits = np.ascontiguousarray(queries[:, :4]).view(np.uint32)
    mixed = np.bitwise_xor.reduce(bits * _SPREAD, axis=1) * _SPREAD
    return np.flatnonzero((mixed >> np.uint32(8)) % np.uint32(one_in) == 0)


def recheck(bank: CellBank, queries: Vectors, best: Vectors, second: Vectors) -> Rechecked:
    """Searches queries (n, 768) exactly, and compares the decisions with those by the two cosines (n,)
    that were found."""
    exact, guard = exact_top2(bank.vectors, queries), bank.guard
    ours, true = guard.keeps(best, second), guard.keeps(exact.best, exact.second)
    return Rechecked(len(queries), int((ours == true).sum()), int((ours & ~true).sum()))
