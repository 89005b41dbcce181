"""More vectors than there are: for measuring at a size that no data set at hand has.

The real vectors come first. Each further one lies between two vectors of one article, at a random place,
and is then moved by `noise` times its length in the direction of the difference of two vectors drawn
from anywhere: noise that has the directions of text, unlike a normal one. Both lengths are 1 before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amn.data.arrays import writing_rows
from amn.data.vectors import chunks
from amn.errors import DataError

Vectors = NDArray[np.float32]


def enlarge(
    vectors: Vectors,
    article: NDArray[np.integer],
    path: Path,
    *,
    count: int,
    noise: float = 0.5,
    seed: int = 0,
    on_rows: Callable[[int], None] = lambda done: None,
) -> None:
    """Writes a float16 array (count, 768) to `path`: `vectors`, then made ones.

    Args:
        vectors: Shape (N, 768), unit norm.
        article: Shape (N,); rows of one article stand together.

    Raises:
        DataError: `count` is below N, or `path` exists.
    """
    if count < len(vectors):
        raise DataError(f"{len(vectors)} vectors cannot be enlarged to {count}; ask for more")
    if os.path.lexists(path):
        raise DataError(f"{path} exists already; name a new file")
    with writing_rows(path, count, 768, np.float16) as made:
        for rows in chunks(len(vectors)):
            made.put(rows, vectors[rows])
        for rows, made_rows in _between(vectors, article, count, noise, seed):
            made.put(rows, made_rows)
            on_rows(rows.stop)


def _between(
    vectors: Vectors, article: NDArray[np.integer], count: int, noise: float, seed: int
) -> Iterator[tuple[slice, Vectors]]:
    """The made vectors, with the rows that they are for."""
    starts = np.flatnonzero(np.concatenate([[True], article[1:] != article[:-1]]))
    ends = np.append(starts[1:], len(article))
    random = np.random.default_rng(seed)
    for rows in chunks(count - len(vectors)):
        size = rows.stop - rows.start
        one = random.integers(len(vectors), size=size)
        at = np.searchsorted(starts, one, side="right") - 1
        other = random.integers(starts[at], ends[at])
        place = random.random((size, 1), dtype=np.float32)
        away = vectors[random.integers(len(vectors), size=size)]
        away = away - vectors[random.integers(len(vectors), size=size)]
        point = _unit((1 - place) * vectors[one] + place * vectors[other])
        place_of = slice(len(vectors) + rows.start, len(vectors) + rows.stop)
        yield place_of, _unit(point + noise * _unit(away))


def _unit(rows: Vectors) -> Vectors:
    made: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return made
