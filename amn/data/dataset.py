"""Splits by article, free of near-duplicates.

Windows of one article overlap, so a split of windows would put almost the same context on
both sides. Splits here are of whole articles, and vectors that stand (nearly) verbatim on
both sides are found and their windows dropped from the side that is not judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amn.data.vectors import WINDOW, Index, Vectors, VectorSet, chunks
from amn.errors import DataError

NEAR_DUPLICATE_COSINE = 0.999
UNSEEN_DOMAIN = "anarchism"
TRAINING_SPLIT_SEED = 0


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
    data: VectorSet,
    *,
    seed: int = TRAINING_SPLIT_SEED,
    unseen_domain: str = UNSEEN_DOMAIN,
    selection_domain: str = "",
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
    """Mask of the rows of `vectors` (N, 768) with a cosine above 0.999 to a row of `others`.

    Unit vectors with a cosine above 0.999 are at most 0.0448 apart, so their first
    coordinates on any axis are too: sorting by one projection leaves few candidates.
    """
    found = np.zeros(len(vectors), dtype=bool)
    if not len(vectors) or not len(others):
        return found
    reach = float(np.sqrt(2.0 - 2.0 * NEAR_DUPLICATE_COSINE))
    # The widest axis of the data separates more candidates than a random one.
    axis = np.linalg.eigh(np.cov(others, rowvar=False, bias=True))[1][:, -1].astype(np.float32)
    others = others[np.argsort(others @ axis)]
    positions, along = others @ axis, vectors @ axis
    order = np.argsort(along)
    for rows in chunks(len(vectors), 256):
        index = order[rows]
        first = np.searchsorted(positions, along[index[0]] - reach)
        last = np.searchsorted(positions, along[index[-1]] + reach, side="right")
        if first < last:
            best = (vectors[index] @ others[first:last].T).max(axis=1)
            found[index] = best > NEAR_DUPLICATE_COSINE
    return found


def training_vectors(
    data: VectorSet, *, unseen_domain: str = UNSEEN_DOMAIN, selection_domain: str = ""
) -> tuple[Vectors, NDArray[np.int32]]:
    """Vectors (n, 768) of the training side and the article of each, in reading order.

    This is what a reference bank may be made of: no article of validation, test or unseen
    domain is in it, nor a near-duplicate of one of their vectors.
    """
    split = split_by_article(
        data,
        seed=TRAINING_SPLIT_SEED,
        unseen_domain=unseen_domain,
        selection_domain=selection_domain,
    )
    rows = rows_of(split.train)
    return data.rows(rows), np.asarray(data.article[rows], dtype=np.int32)
