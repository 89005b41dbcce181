"""Vectors in reading order, checked, and the windows cut from them.

A window is five consecutive vectors of one article and the one that follows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amn.config import CONTEXT_LENGTH, VECTOR_DIM
from amn.data.arrays import Rows
from amn.errors import DataError

WINDOW = CONTEXT_LENGTH + 1
NORM_TOLERANCE = 1e-3
ROWS_PER_CHUNK = 8192

Vectors = NDArray[np.float32]
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSet:
    """Articles as vectors; rows of one article are consecutive and in reading order."""

    vectors: Rows  # (N, 768), float16 or float32
    article: NDArray[np.integer]  # (N,)
    article_domain: NDArray[np.str_]  # (articles,)
    article_name: NDArray[np.str_]  # (articles,)
    source: str
    encoder_id: str  # the recipe that made the vectors, by the file or by whoever gave it

    def rows(self, index: NDArray[np.integer] | slice) -> Vectors:
        """Rows as float32 with norm exactly one (float16 storage rounds it)."""
        rows = np.asarray(self.vectors[index], dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        return rows

    def sha256(self) -> str:
        """Hash of vectors and article ids: what a manifest calls the training data."""
        digest = hashlib.sha256()
        for rows in chunks(len(self.vectors)):
            digest.update(np.ascontiguousarray(self.vectors[rows]).tobytes())
        digest.update(np.ascontiguousarray(self.article).tobytes())
        return digest.hexdigest()

    def window_starts(self) -> Index:
        """First row of every window of 5 + 1 that stays inside one article."""
        if len(self.article) < WINDOW:
            return np.empty(0, dtype=np.int64)
        same = self.article[: -WINDOW + 1] == self.article[WINDOW - 1 :]
        return np.flatnonzero(same)

    def windows(self, starts: Index) -> Vectors:
        """Windows (n, 6, 768): five context vectors, then the true next one."""
        rows = starts[:, None] + np.arange(WINDOW)
        return self.rows(rows.ravel()).reshape(len(starts), WINDOW, VECTOR_DIM)


def chunks(length: int, size: int = ROWS_PER_CHUNK) -> Iterator[slice]:
    """Slices that cover `length` rows without holding them all in memory."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def validate(data: VectorSet) -> VectorSet:
    """Return `data`, or say which row must not be trained or judged on.

    Raises:
        DataError: wrong width or type, non-finite or all-zero rows, norms outside 1 +- 1e-3,
            articles shorter than six vectors or not stored in one piece.
    """
    vectors, article = data.vectors, data.article
    if vectors.ndim != 2 or vectors.shape[1] != VECTOR_DIM:
        raise DataError(f"{data.source}: vectors have shape {vectors.shape}; expected (N, {VECTOR_DIM})")
    if article.shape != (len(vectors),):
        raise DataError(
            f"{data.source}: {len(vectors)} vectors but article ids of shape {article.shape}; "
            "give one article id for each vector"
        )
    if len(vectors) == 0:
        raise DataError(f"{data.source}: no vectors; n = 0 proves nothing")
    check_numbers(data.source, vectors)
    if article.dtype.kind not in "iu" or isinstance(article, np.ma.MaskedArray):
        raise DataError(f"{data.source}: article ids of type {article.dtype}; number the articles from 0")
    for rows in chunks(len(vectors)):
        check_rows(data.source, np.asarray(vectors[rows], dtype=np.float32), rows.start)
    check_articles(data)
    return data


def check_numbers(source: str, array: Rows) -> None:
    """Refuse what NumPy would turn into numbers by itself: text, times, complex and masked values.

    Raises:
        DataError: it does not hold floats, or some are masked.
    """
    if array.dtype.kind != "f":
        raise DataError(f"{source}: vectors of type {array.dtype}; save them as float32 or float16")
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        row = int(np.argwhere(np.ma.getmaskarray(array))[0, 0])
        raise DataError(f"{source}: numbers of row {row} are masked, so they are not there; drop the row")


def check_rows(source: str, rows: Vectors, offset: int) -> None:
    """Refuse rows that are not finite unit vectors; `offset` is the number of the first."""
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        row = offset + int(np.argmin(finite))
        raise DataError(f"{source}: row {row} holds NaN or infinity; encode it again")
    norms = np.linalg.norm(rows, axis=1)
    if not norms.all():
        row = offset + int(np.argmin(norms))
        raise DataError(f"{source}: row {row} is all zeros: the encoder failed there; drop it")
    wrong = np.abs(norms - 1.0) > NORM_TOLERANCE
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{source}: row {offset + row} has norm {norms[row]:.4f}, outside 1 +- "
            f"{NORM_TOLERANCE}; normalise the vectors after encoding"
        )


def check_articles(data: VectorSet) -> None:
    """Refuse articles too short for one window, split in pieces, or without a domain."""
    article = data.article
    changes = np.flatnonzero(np.diff(article)) + 1
    pieces = article[np.concatenate([[0], changes])]
    lengths = np.diff(np.concatenate([[0], changes, [len(article)]]))
    ids, times = np.unique(pieces, return_counts=True)
    if (times > 1).any():
        raise DataError(
            f"{data.source}: article {ids[times > 1][0]} is stored in several pieces; "
            "keep the rows of an article together, in reading order"
        )
    if lengths.min() < WINDOW:
        short = int(pieces[np.argmin(lengths)])
        raise DataError(
            f"{data.source}: article {short} has {lengths.min()} vectors; a window needs "
            f"{WINDOW}, so drop shorter articles"
        )
    if ids.min() < 0 or ids.max() >= len(data.article_domain):
        raise DataError(
            f"{data.source}: article ids {ids.min()}..{ids.max()} do not fit the "
            f"{len(data.article_domain)} entries of article_domain"
        )
    for name, values in (("article_domain", data.article_domain), ("article_name", data.article_name)):
        if values.shape != data.article_domain.shape or (len(values) == len(article) > len(ids)):
            raise DataError(
                f"{data.source}: {name} has shape {values.shape}; give one entry for each article, not for "
                "each vector"
            )
