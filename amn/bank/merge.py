"""Merging of near-duplicates, also among half a million vectors.

Greedy in the given order: a vector within `epsilon` of an earlier kept one only adds to that one's
multiplicity. In a large set, only vectors that share a cell are compared; each lies in two, and two
vectors with a cosine of .98 are so near to each other that they hardly ever share none
(tests/unit/amn/bank/test_amn_reference_merge.py compares with the comparison of all pairs).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from amn.bank.cells import Filing
from amn.data.vectors import chunks
from amn.errors import DataError

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]
OnRows = Callable[[int], None]

#: Up to here all pairs are compared.
ALL_PAIRS_MAX = 8192
_BLOCK = 1024
#: More near-duplicates than this are not text; memory would not hold them.
_PAIRS_MAX = 50_000_000


def merge_duplicates(
    unit: Vectors, epsilon: float, filing: Filing | None = None, on_rows: OnRows = lambda done: None
) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Returns the vectors that are kept, and the number of source vectors that each stands for.

    Args:
        unit: Shape (N, 768), float32, unit norm; may be mapped.
        filing: The cells of the vectors; needed for more than `ALL_PAIRS_MAX`.

    Raises:
        DataError: There are too many near-duplicates to hold.
    """
    first, copies = _copies(unit)
    pairs = _pairs(unit, epsilon, filing, first, on_rows)
    into = _greedy(pairs)
    multiplicity = copies.astype(np.int32)
    for source, target in into.items():
        multiplicity[target] += multiplicity[source]
        multiplicity[source] = 0
    kept = np.flatnonzero(multiplicity)
    return kept, multiplicity[kept]


def _copies(unit: Vectors) -> tuple[Ids, Ids]:
    """Rows that repeat no earlier row byte by byte, and for each row how many it stands for so far.

    Without this, boilerplate that stands in many articles would make pairs by the square of its count.
    """
    seen: dict[bytes, int] = {}
    copies = np.zeros(len(unit), dtype=np.int64)
    for rows in chunks(len(unit)):
        for place, row in enumerate(np.ascontiguousarray(unit[rows], dtype=np.float32), rows.start):
            copies[seen.setdefault(hashlib.blake2b(row, digest_size=16).digest(), place)] += 1
    return np.flatnonzero(copies), copies


def _pairs(
    unit: Vectors, epsilon: float, filing: Filing | None, first: Ids, on_rows: OnRows
) -> tuple[Ids, Ids, Vectors]:
    """(later, earlier, cosine) of all pairs above epsilon that share a cell."""
    found: list[tuple[Ids, Ids, Vectors]] = []
    total = 0
    for members in _cells(filing, first):
        for later, earlier, cosine in _pairs_among(unit, epsilon, filing, members):
            total += len(later)
            if total > _PAIRS_MAX:
                raise DataError(
                    f"more than {_PAIRS_MAX} pairs have a cosine above {epsilon}; raise epsilon, or drop "
                    "vectors that repeat"
                )
            found.append((later, earlier, cosine))
        on_rows(len(members))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    a, b, c = (np.concatenate([part[i] for part in found]) for i in range(3))
    return np.asarray(a, np.int64), np.asarray(b, np.int64), np.asarray(c, np.float32)


def _cells(filing: Filing | None, first: Ids) -> list[Ids]:
    if filing is None:
        return [first]
    members = []
    for column in (0, 1):
        cells = filing.cells[first, column]
        order = np.argsort(cells, kind="stable")
        ends = np.cumsum(np.bincount(cells, minlength=len(filing.centroids)))
        members.append(np.split(first[order], ends[:-1]))
    return [np.union1d(a, b) for a, b in zip(*members, strict=True)]


def _pairs_among(
    unit: Vectors, epsilon: float, filing: Filing | None, members: Ids
) -> list[tuple[Ids, Ids, Vectors]]:
    """Pairs of ascending `members`, in blocks of rows against all before them."""
    found = []
    for start in range(0, len(members), _BLOCK):
        rows, before = members[start : start + _BLOCK], members[: start + _BLOCK]
        if filing is None:
            scores = unit[rows] @ unit[before].T
            later, earlier = np.nonzero(scores > epsilon)
            cosine = scores[later, earlier]
        else:
            later, earlier, cosine = _near(unit, epsilon, filing, rows, before)
        older = before[earlier] < rows[later]
        found.append((rows[later[older]], before[earlier[older]], cosine[older]))
    return found


def _near(unit: Vectors, epsilon: float, filing: Filing, rows: Ids, before: Ids) -> tuple[Ids, Ids, Vectors]:
    """Compares only pairs whose projections are near, and loses none by it: no pair is farther apart
    in a projection than it is."""
    a, b = filing.flat[rows, :-1], filing.flat[before, :-1]
    # |a - b|^2 <= |x - y|^2 = 2 - 2 cosine; a hair is left for rounding.
    least = (np.vecdot(a, a)[:, None] + np.vecdot(b, b)) / 2 - (1 - epsilon) - 1e-4
    later, earlier = np.nonzero(a @ b.T > least)
    cosine = np.empty(len(later), dtype=np.float32)
    for part in chunks(len(later)):
        cosine[part] = np.vecdot(unit[rows[later[part]]], unit[before[earlier[part]]])
    near = cosine > epsilon
    return later[near], earlier[near], cosine[near]


def _greedy(pairs: tuple[Ids, Ids, Vectors]) -> dict[int, int]:
    """Returns the row that each row goes into: the nearest earlier one that is kept itself."""
    later, earlier, cosine = pairs
    into: dict[int, int] = {}
    # By row; the nearest first.
    order = np.lexsort((-cosine, later))
    for source, target in zip(later[order].tolist(), earlier[order].tolist(), strict=True):
        if source not in into and target not in into:
            into[source] = target
    return into
