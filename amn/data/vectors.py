"""Vectors in reading order, checked, and the windows cut from them.

A window is five consecutive vectors of one article and the one that follows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from amn.config import CONTEXT_LENGTH, SIDES, VECTOR_DIM
from amn.data.arrays import Rows
from amn.errors import DataError

WINDOW = CONTEXT_LENGTH + 1
NORM_TOLERANCE = 1e-3
ROWS_PER_CHUNK = 8192

#: Sides of articles, as files say them.
DRAWN, TRAIN, LEFT_OUT = "", "train", "left_out"

Vectors = NDArray[np.float32]
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSet:
    """Articles as vectors; rows of one article are consecutive and in reading order.

    Attributes:
        vectors: (N, 768), float16 or float32.
        article: The article's number of each row, (N,).
        article_domain, article_name: By article.
        encoder_id: The recipe that made the vectors, by the file or by whoever gave it.
        encoder_sha256: Hash of its files; "" where nobody knows it.
        article_side: By article: "" for one whose side is drawn, "train" or "left_out" for one whose side
            is given; empty for a set without given sides.
    """

    vectors: Rows
    article: NDArray[np.integer]
    article_domain: NDArray[np.str_]
    article_name: NDArray[np.str_]
    source: str
    encoder_id: str
    encoder_sha256: str = ""
    article_side: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, np.str_))

    def articles_of(self, side: str) -> NDArray[np.bool_]:
        """Return which articles have a side, (A,); "" is that of all in a set without given sides."""
        given = self.article_side if len(self.article_side) else np.full(len(self.article_domain), DRAWN)
        return np.asarray(given == side)

    def rows(self, index: NDArray[np.integer] | slice) -> Vectors:
        """Rows as float32 with norm exactly one (float16 storage rounds it)."""
        rows = np.asarray(self.vectors[index], dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        return rows

    def sha256(self) -> str:
        """Hash of vectors and article ids, by which a manifest names the training data."""
        digest = hashlib.sha256()
        for rows in chunks(len(self.vectors)):
            digest.update(np.ascontiguousarray(self.vectors[rows]).tobytes())
        digest.update(np.ascontiguousarray(self.article).tobytes())
        return digest.hexdigest()

    def window_starts(self) -> Index:
        """First row of every window of 5 + 1 that stays inside one article."""
        if len(self.article) < WINDOW:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(self.article[: -WINDOW + 1] == self.article[WINDOW - 1 :])

    def windows(self, starts: Index) -> Vectors:
        """Windows (n, 6, 768): five context vectors, then the true next one."""
        return self.rows(window_rows(starts).ravel()).reshape(len(starts), WINDOW, VECTOR_DIM)

    def next_vectors(self, starts: Index) -> Vectors:
        """The true next vectors of windows, (n, 768)."""
        return self.rows(starts + CONTEXT_LENGTH)


def window_rows(starts: Index) -> Index:
    """The rows of windows, (n, 6)."""
    return starts[:, None] + np.arange(WINDOW)


def unit(rows: Vectors) -> Vectors:
    """Rows (..., 768) scaled to norm one; zeros stay zeros."""
    length = np.sqrt(np.vecdot(rows, rows))[..., None]
    scaled: Vectors = rows / np.maximum(length, 1e-12)
    return scaled


def chunks(length: int, size: int = ROWS_PER_CHUNK) -> Iterator[slice]:
    """Slices that cover `length` rows without holding them all in memory."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def validate(data: VectorSet) -> VectorSet:
    """Return `data`, or say which row must not be trained or judged on.

    Raises:
        DataError: Wrong width or type, non-finite or all-zero rows, norms outside 1 +- 1e-3,
            articles shorter than six vectors or not stored in one piece.
    """
    for fault in _faults(data):
        raise DataError(f"{data.source}: {fault}")
    check_numbers(data.source, data.vectors)
    for rows in chunks(len(data.vectors)):
        check_rows(data.source, np.asarray(data.vectors[rows], dtype=np.float32), rows.start)
    return data


def _faults(data: VectorSet) -> Iterator[str]:
    """The faults of the arrays' shapes, and of articles; only the first can be relied on."""
    vectors, article, domains = data.vectors, data.article, data.article_domain
    if vectors.ndim != 2 or vectors.shape[1] != VECTOR_DIM:
        yield f"vectors have shape {vectors.shape}; expected (N, {VECTOR_DIM})"
    if article.shape != (len(vectors),):
        yield f"{len(vectors)} vectors and article ids {article.shape}; give one article id for each vector"
    if len(vectors) == 0:
        yield "no vectors; n = 0 proves nothing"
    if article.dtype.kind not in "iu" or isinstance(article, np.ma.MaskedArray):
        yield f"article ids of type {article.dtype}; number the articles from 0"
    edges = np.concatenate([[0], np.flatnonzero(np.diff(article)) + 1, [len(article)]])
    pieces, lengths = article[edges[:-1]], np.diff(edges)
    ids, times = np.unique(pieces, return_counts=True)
    if (times > 1).any():
        several = ids[times > 1][0]
        yield f"article {several} is stored in several pieces; keep its rows together, in reading order"
    if lengths.min() < WINDOW:
        short = pieces[np.argmin(lengths)]
        yield f"article {short} has {lengths.min()} vectors; a window needs {WINDOW}, so drop short articles"
    if ids.min() < 0 or ids.max() >= len(domains):
        yield f"article ids {ids.min()}..{ids.max()} do not fit the {len(domains)} entries of article_domain"
    for name, values in (("article_domain", domains), ("article_name", data.article_name)):
        if values.shape != domains.shape or (len(values) == len(article) > len(ids)):
            yield f"{name} has shape {values.shape}; give one entry for each article, not for each vector"
    if len(data.article_side) not in (0, len(domains)):
        yield f"article_side has {len(data.article_side)} entries, and there are {len(domains)} articles"
    elif len(domains):
        yield from side_faults(domains, data.article_side)


def side_faults(domains: NDArray[np.str_], sides: NDArray[np.str_]) -> Iterator[str]:
    """The faults of the sides that articles are given, and of the domains that are left out."""
    if strange := set(sides.tolist()) - {DRAWN, TRAIN, LEFT_OUT}:
        yield f"article_side holds {min(strange)!r}; give {TRAIN!r}, {LEFT_OUT!r}, or '' to draw it"
    left_out = set(domains[np.flatnonzero(sides == LEFT_OUT)].tolist())
    if sides_named := left_out & set(SIDES):
        yield f"a domain that is left out is a side of its name, and {min(sides_named)!r} is one; rename it"
    if divided := left_out & set(domains[np.flatnonzero(sides != LEFT_OUT)].tolist()):
        yield f"domain {min(divided)!r} is left out, but not all of its articles; leave out all, or none"


def check_numbers(source: str, array: Rows) -> None:
    """Refuse what NumPy would turn into numbers by itself: text, times, complex and masked values."""
    if array.dtype.kind != "f":
        raise DataError(f"{source}: vectors of type {array.dtype}; save them as float32 or float16")
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        row = int(np.argwhere(np.ma.getmaskarray(array))[0, 0])
        raise DataError(f"{source}: numbers of row {row} are masked, so they are not there; drop the row")


def check_rows(source: str, rows: Vectors, offset: int) -> None:
    """Refuses rows that are not finite unit vectors; `offset` is the number of the first."""
    norms = np.linalg.norm(rows, axis=1)
    wrong = ~(np.abs(norms - 1.0) <= NORM_TOLERANCE)  # NaN too
    if wrong.any():
        row = int(np.argmax(wrong))
        if not np.isfinite(norms[row]):
            why = "holds NaN or infinity; encode it again"
        elif not norms[row]:
            why = "is all zeros: the encoder failed there; drop it"
        else:
            why = f"has norm {norms[row]:.4f}, outside 1 +- {NORM_TOLERANCE}; normalise after encoding"
        raise DataError(f"{source}: row {offset + row} {why}")
