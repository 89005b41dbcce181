"""Vectors in reading order: reading, checking, splitting by article, cutting windows.

A window is five consecutive vectors of one article and the one that follows. Windows of one
article overlap, so a split of windows would put almost the same context on both sides;
splits here are of whole articles, and vectors that stand (nearly) verbatim on both sides
are found and their windows dropped from the side that is not judged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amn.config import CONTEXT_LENGTH, VECTOR_DIM
from amn.errors import DataError

WINDOW = CONTEXT_LENGTH + 1
NORM_TOLERANCE = 1e-3
NEAR_DUPLICATE_COSINE = 0.999
ROWS_PER_CHUNK = 8192

Vectors = NDArray[np.float32]
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSet:
    """Articles as vectors; rows of one article are consecutive and in reading order."""

    vectors: NDArray[np.floating]  # (N, 768), float16 or float32, may be memory-mapped
    article: NDArray[np.integer]  # (N,)
    article_domain: NDArray[np.str_]  # (articles,)
    article_name: NDArray[np.str_]  # (articles,)
    source: str

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
        DataError: wrong width, non-finite or all-zero rows, norms outside 1 +- 1e-3,
            articles shorter than six vectors or not stored in one piece.
    """
    vectors, article = data.vectors, data.article
    if vectors.ndim != 2 or vectors.shape[1] != VECTOR_DIM:
        raise DataError(
            f"{data.source}: vectors have shape {vectors.shape}; expected (N, {VECTOR_DIM})"
        )
    if article.shape != (len(vectors),):
        raise DataError(
            f"{data.source}: {len(vectors)} vectors but article ids of shape {article.shape}; "
            "give one article id for each vector"
        )
    if len(vectors) == 0:
        raise DataError(f"{data.source}: no vectors; n = 0 proves nothing")
    for rows in chunks(len(vectors)):
        check_rows(data.source, np.asarray(vectors[rows], dtype=np.float32), rows.start)
    check_articles(data)
    return data


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Windows (by first row) of each side; no article stands on two sides."""

    train: Index
    validation: Index
    test: Index
    unseen: Index
    #: Windows of a domain kept out of training to select on; empty without one.
    selection: Index
    #: Windows dropped because a vector stands nearly verbatim on a side that is judged.
    dropped: int

    def sides(self) -> dict[str, Index]:
        """Name -> window starts, without empty sides."""
        named = {name: getattr(self, name) for name in ("train", "validation", "test")}
        named |= {"selection": self.selection, "unseen": self.unseen}
        return {name: starts for name, starts in named.items() if len(starts)}


def split_by_article(
    data: VectorSet, *, seed: int = 0, unseen_domain: str, selection_domain: str = ""
) -> Split:
    """80 / 10 / 10 of the articles outside the domains that are kept out of training.

    The permutation is drawn before the selection domain is taken out, so validation and
    test articles are the same with and without one.

    Raises:
        DataError: a domain does not exist, or a side would be empty.
    """
    domains = data.article_domain
    for domain in filter(None, (unseen_domain, selection_domain)):
        if domain not in domains:
            raise DataError(
                f"{data.source}: no article of domain {domain!r}; there are "
                f"{', '.join(sorted(set(domains.tolist())))}"
            )
    known = np.flatnonzero(domains != unseen_domain)
    order = np.random.default_rng(seed).permutation(known)
    tenth = len(order) // 10
    starts = data.window_starts()
    of_window = data.article[starts]
    left_out = np.isin(of_window, np.flatnonzero(domains == selection_domain))

    def side(articles: NDArray[np.integer]) -> Index:
        return starts[np.isin(of_window, articles) & ~left_out]

    sides = {
        "validation": side(order[:tenth]),
        "test": side(order[tenth : 2 * tenth]),
        "train": side(order[2 * tenth :]),
        "unseen": starts[np.isin(of_window, np.flatnonzero(domains == unseen_domain))],
        "selection": starts[left_out],
    }
    for name in ("train", "validation", "test"):
        if not len(sides[name]):
            raise DataError(f"{data.source}: the {name} side is empty; give more articles")
    return drop_near_duplicates(data, sides)


def drop_near_duplicates(data: VectorSet, sides: dict[str, Index]) -> Split:
    """Drop training and validation windows that repeat a vector of a judged side.

    Boilerplate sentences stand in many articles, so a hard failure would refuse all real
    documentation; the judged sides stay as they are and what trains gives way.
    """
    judged = [sides[name] for name in ("test", "unseen", "selection")]
    held_out = rows_of(np.concatenate(judged))
    validation = without_duplicates(data, sides["validation"], held_out)
    held_out = np.union1d(held_out, rows_of(validation))
    train = without_duplicates(data, sides["train"], held_out)
    dropped = len(sides["validation"]) - len(validation) + len(sides["train"]) - len(train)
    return Split(
        train=train,
        validation=validation,
        test=sides["test"],
        unseen=sides["unseen"],
        selection=sides["selection"],
        dropped=dropped,
    )


def rows_of(starts: Index) -> Index:
    """All rows that the windows touch, each once."""
    return np.unique(starts[:, None] + np.arange(WINDOW))


def without_duplicates(data: VectorSet, starts: Index, held_out: Index) -> Index:
    """The windows of `starts` none of whose rows is a near-duplicate of a held-out row."""
    rows = rows_of(starts)
    repeated = rows[near_duplicates(data.rows(rows), data.rows(held_out))]
    touched = np.isin(starts[:, None] + np.arange(WINDOW), repeated).any(axis=1)
    return starts[~touched]


def near_duplicates(vectors: Vectors, others: Vectors) -> NDArray[np.bool_]:
    """Which rows of `vectors` (N, 768) have a cosine above 0.999 with a row of `others`.

    Unit vectors with a cosine above 0.999 are at most 0.0448 apart, so their first
    coordinates on any axis are too: sorting by one projection leaves few candidates.
    """
    found = np.zeros(len(vectors), dtype=bool)
    if not len(vectors) or not len(others):
        return found
    reach = float(np.sqrt(2.0 - 2.0 * NEAR_DUPLICATE_COSINE))
    axis = np.random.default_rng(7).standard_normal((VECTOR_DIM, 1)).astype(np.float32)
    axis /= np.linalg.norm(axis)
    mean = others.mean(axis=0)
    # The widest axis of the data separates more candidates than a random one.
    axis = widest_axis(others - mean, axis)
    order = np.argsort((others @ axis).ravel())
    sorted_others = others[order]
    positions = (sorted_others @ axis).ravel()
    along = (vectors @ axis).ravel()
    by_place = np.argsort(along)
    for rows in chunks(len(vectors), 256):
        index = by_place[rows]
        first = np.searchsorted(positions, along[index[0]] - reach)
        last = np.searchsorted(positions, along[index[-1]] + reach, side="right")
        if first < last:
            best = (vectors[index] @ sorted_others[first:last].T).max(axis=1)
            found[index] = best > NEAR_DUPLICATE_COSINE
    return found


def widest_axis(centred: Vectors, start: Vectors, rounds: int = 8) -> Vectors:
    """Direction (768, 1) of about the largest variance, by power iteration."""
    axis = start
    for _ in range(rounds):
        axis = centred.T @ (centred @ axis)
        norm = float(np.linalg.norm(axis))
        if norm == 0.0:
            return start
        axis = axis / norm
    return axis
