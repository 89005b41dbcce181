"""Merging of near-duplicates, also among half a million vectors.

The merge is greedy in the given order: a vector within `epsilon` of an earlier kept one only adds to that
one's multiplicity. In a large set, only vectors that share a cell are compared; each lies in two, and two
vectors with a cosine of .98 are so near to each other that they hardly ever share none
(tests/unit/amn/bank/test_amn_reference_merge.py compares with the comparison of all pairs).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from amn.data.vectors import chunks
from amn.errors import DataError

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]
OnRows = Callable[[int], None]

_BLOCK = 1024
#: More near-duplicates than this are not text; memory would not hold them.
_PAIRS_MAX = 50_000_000


def merge_duplicates(
    unit: Vectors,
    epsilon: float,
    cells: NDArray[np.integer] | None = None,
    on_rows: OnRows = lambda done: None,
) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Returns the vectors that are kept, and the number of source vectors that each stands for.

    Args:
        unit: Shape (N, 768), float32, unit norm; may be mapped.
        cells: Shape (N, 2): the two cells of each vector, or None to compare all pairs.
        on_rows: Told about how many vectors were compared.

    Raises:
        DataError: There are too many near-duplicates to hold.
    """
    multiplicity = _copies(unit)
    distinct = np.flatnonzero(multiplicity)
    groups = [distinct] if cells is None else _groups(cells, distinct)
    for source, target in _greedy(_pairs(unit, epsilon, groups, on_rows)).items():
        multiplicity[target] += multiplicity[source]
        multiplicity[source] = 0
    kept = np.flatnonzero(multiplicity)
    return kept, multiplicity[kept]


def _copies(unit: Vectors) -> NDArray[np.int32]:
    """The number of rows that repeat a row byte by byte, itself included; 0 where an earlier one did.

    Without this, boilerplate that stands in many articles would make pairs by the square of its count.
    """
    seen: dict[bytes, int] = {}
    copies = np.zeros(len(unit), dtype=np.int32)
    for rows in chunks(len(unit)):
        for number, row in enumerate(np.ascontiguousarray(unit[rows], dtype=np.float32), rows.start):
            copies[seen.setdefault(hashlib.blake2b(row, digest_size=16).digest(), number)] += 1
    return copies


def _groups(cells: NDArray[np.integer], distinct: Ids) -> list[Ids]:
    """The members of each cell, ascending."""
    columns = []
    for column in cells[distinct].T:
        ends = np.cumsum(np.bincount(column, minlength=int(cells.max()) + 1))
        columns.append(np.split(distinct[np.argsort(column, kind="stable")], ends[:-1]))
    return [np.union1d(a, b) for a, b in zip(*columns, strict=True)]


def _pairs(unit: Vectors, epsilon: float, groups: list[Ids], on_rows: OnRows) -> tuple[Ids, Ids, Vectors]:
    """(later, earlier, cosine) of all pairs above epsilon within a group."""
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    total = 0
    for number, members in enumerate(groups, 1):
        vectors = unit[members]
        for start in range(0, len(members), _BLOCK):
            end = start + _BLOCK
            scores = vectors[start:end] @ vectors[:end].T
            later, earlier = np.nonzero(np.tril(scores > epsilon, start - 1))
            found.append((members[start + later], members[earlier], scores[later, earlier]))
            total += len(later)
            if total > _PAIRS_MAX:
                raise DataError(
                    f"more than {_PAIRS_MAX} pairs have a cosine above {epsilon}; raise epsilon, or drop "
                    "vectors that repeat"
                )
        on_rows(len(unit) * number // len(groups))
    later, earlier, cosine = (np.concatenate(column) for column in zip(*found, strict=True))
    return later, earlier, cosine


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
