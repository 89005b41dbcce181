"""Splits by article, free of near-duplicates.

Windows of one article overlap, so a split of windows would put almost the same context on
both sides. Splits here are of whole articles, and vectors that stand (nearly) verbatim on
both sides are found and their windows dropped from the side that is not judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amn.data.vectors import Index, Vectors, VectorSet, chunks, window_rows
from amn.errors import DataError

NEAR_DUPLICATE_COSINE = 0.999
UNSEEN_DOMAIN = "anarchism"
SIDES = ("train", "validation", "test", "selection", "unseen")


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Windows (by first row) of each side; no article stands on two sides.

    Attributes:
        selection: Windows of a domain kept out of training to select on; empty without one.
        dropped: Windows dropped because a vector stands nearly verbatim on a side that is judged.
    """

    train: Index
    validation: Index
    test: Index
    unseen: Index
    selection: Index
    dropped: int

    def sides(self) -> dict[str, Index]:
        """Name -> window starts, without empty sides."""
        return {name: getattr(self, name) for name in SIDES if len(getattr(self, name))}


def split_by_article(
    data: VectorSet, *, seed: int = 0, unseen_domain: str = UNSEEN_DOMAIN, selection_domain: str = ""
) -> Split:
    """80 / 10 / 10 of the articles outside the domains that are kept out of training.

    The permutation is drawn before the selection domain is taken out, so validation and test articles are
    the same with and without one. Training and validation windows that repeat a vector of a judged side
    are dropped: boilerplate stands in many articles, and a failure would refuse all real documentation.

    Raises:
        DataError: A domain does not exist, or a side would be empty.
    """
    domains, starts = data.article_domain, data.window_starts()
    for domain in filter(None, (unseen_domain, selection_domain)):
        if domain not in domains:
            known = ", ".join(sorted(set(domains.tolist())))
            raise DataError(f"{data.source}: no article of domain {domain!r}; there are {known}")
    order = np.random.default_rng(seed).permutation(np.flatnonzero(domains != unseen_domain))
    tenth = len(order) // 10
    of_window = data.article[starts]
    left_out = domains[of_window] == selection_domain

    def side(articles: NDArray[np.integer]) -> Index:
        found: Index = starts[np.isin(of_window, articles) & ~left_out]
        return found

    validation, test = side(order[:tenth]), side(order[tenth : 2 * tenth])
    train = side(order[2 * tenth :])
    for name, windows in (("train", train), ("validation", validation), ("test", test)):
        if not len(windows):
            raise DataError(f"{data.source}: the {name} side is empty; give more articles")
    unseen, selection = starts[domains[of_window] == unseen_domain], starts[left_out]
    held_out = rows_of(np.concatenate([test, unseen, selection]))
    kept_validation = without_duplicates(data, validation, held_out)
    held_out = np.union1d(held_out, rows_of(kept_validation))
    kept_train = without_duplicates(data, train, held_out)
    return Split(
        train=kept_train,
        validation=kept_validation,
        test=test,
        unseen=unseen,
        selection=selection,
        dropped=len(validation) - len(kept_validation) + len(train) - len(kept_train),
    )


def rows_of(starts: Index) -> Index:
    """All rows that the windows touch, each once."""
    return np.unique(window_rows(starts))


def without_duplicates(data: VectorSet, starts: Index, held_out: Index) -> Index:
    """The windows of `starts` none of whose rows is a near-duplicate of a held-out row."""
    rows = rows_of(starts)
    repeated = rows[near_duplicates(data.rows(rows), data.rows(held_out))]
    return starts[~np.isin(window_rows(starts), repeated).any(axis=1)]


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


def training_vectors(data: VectorSet) -> tuple[Vectors, NDArray[np.int32]]:
    """Vectors (n, 768) of the training side and the article of each, in reading order.

    A reference bank may be made of them: no article of validation, test or unseen
    domain is in it, nor a near-duplicate of one of their vectors.
    """
    rows = rows_of(split_by_article(data).train)
    return data.rows(rows), np.asarray(data.article[rows], dtype=np.int32)
