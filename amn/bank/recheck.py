"""Answers of an approximate bank, compared with an exact search: which ones, and how they decided.

Pure; the thread that does it beside a worker is in workers/handlers/recheck.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amn.bank.exact import exact_top2
from amn.bank.index import CellBank

Vectors = NDArray[np.float32]

#: Knuth's multiplier: spreads the bits of a number over its upper ones.
_SPREAD = np.uint32(2654435761)


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
    """Searches queries (n, 768) exactly, and compares what the rules make of it with what they made of
    the two cosines (n,) that were found."""
    exact, guard = exact_top2(bank.vectors, queries), bank.guard
    ours, true = guard.keeps(best, second), guard.keeps(exact.best, exact.second)
    return Rechecked(len(queries), int((ours == true).sum()), int((ours & ~true).sum()))
