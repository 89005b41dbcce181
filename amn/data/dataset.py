"""Splits by article, free of near-duplicates, and the files that other parts are made from.

Windows of one article overlap, so a split of windows would put almost the same context on
both sides. Splits here are of whole articles, and vectors that stand (nearly) verbatim on
both sides are found and their windows dropped from the side that is not judged.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amn.config import SIDES, UNSEEN_DOMAIN, VECTOR_DIM
from amn.data.arrays import writing_rows
from amn.data.vectors import DRAWN, LEFT_OUT, TRAIN, WINDOW, Index, Vectors, VectorSet, chunks, window_rows
from amn.errors import DataError
from amn.files import write_whole

NEAR_DUPLICATE_COSINE = 0.999
IN_DISTRIBUTION_SHARE = 0.6
STRETCH_VECTORS_MAX = 40
#: A training side may be larger than memory.
_COMPARED_ROWS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Windows (by first row) of each side; no article stands on two sides.

    Attributes:
        selection: Windows of a domain kept out of training to select on; empty without one.
        left_out: Windows of each domain that the data itself keeps out of training; often there is none.
        dropped: Windows dropped because a vector stands nearly verbatim on a side that is judged.
    """

    train: Index
    validation: Index
    test: Index
    unseen: Index
    selection: Index
    left_out: dict[str, Index]
    dropped: int

    def sides(self) -> dict[str, Index]:
        """Name -> window starts, without empty sides; a domain that is left out is a side of its name."""
        return {name: getattr(self, name) for name in SIDES if len(getattr(self, name))} | self.left_out


def split_by_article(
    data: VectorSet, *, seed: int = 0, unseen_domain: str = UNSEEN_DOMAIN, selection_domain: str = ""
) -> Split:
    """80 / 10 / 10 of the articles outside the domains that are kept out of training.

    Articles whose side the data gives are not drawn, so that the others are split as without them. The
    permutation is drawn before the selection domain is taken out, so validation and test articles are
    the same with and without one. Training and validation windows that repeat a vector of a judged side
    are dropped: boilerplate stands in many articles, and a failure would refuse all real documentation.

    Raises:
        DataError: A domain does not exist, or a side would be empty.
    """
    starts = data.window_starts()
    article, domains = data.article[starts], data.article_domain
    for name in filter(None, (unseen_domain, selection_domain)):
        if name not in domains:
            known = ", ".join(sorted(set(domains.tolist())))
            raise DataError(
                f"{data.source}: no article of domain {name!r}; there are {known}: name the one to keep out "
                "with --unseen-domain"
            )
    drawn = data.articles_of(DRAWN)
    order = np.random.default_rng(seed).permutation(np.flatnonzero((domains != unseen_domain) & drawn))
    tenth = len(order) // 10
    parts = {"validation": order[:tenth], "test": order[tenth : 2 * tenth], "train": order[2 * tenth :]}
    given = np.flatnonzero((domains != unseen_domain) & data.articles_of(TRAIN))
    parts["train"] = np.concatenate([parts["train"], given])
    selected = domains[article] == selection_domain
    side = {name: starts[np.isin(article, part) & ~selected] for name, part in parts.items()}
    if empty := [name for name, windows in side.items() if not len(windows)]:
        raise DataError(f"{data.source}: the {empty[0]} side is empty; give more articles")
    side |= {
        "unseen": starts[(domains == unseen_domain)[article] & drawn[article]],
        "selection": starts[selected],
    }
    apart = starts[data.articles_of(LEFT_OUT)[article]]
    kinds = domains[data.article[apart]]
    left_out = {str(domain): apart[kinds == domain] for domain in np.unique(kinds)}
    before = len(side["validation"]) + len(side["train"])
    judged = rows_of(np.concatenate([side["test"], side["unseen"], side["selection"]]))
    side["validation"] = without_duplicates(data, side["validation"], judged)
    held_out = np.concatenate([judged, rows_of(side["validation"]), rows_of(apart)])
    side["train"] = without_duplicates(data, side["train"], np.unique(held_out))
    return Split(**side, left_out=left_out, dropped=before - len(side["validation"]) - len(side["train"]))


def rows_of(starts: Index) -> Index:
    """All rows that the windows touch, each once."""
    return np.unique(window_rows(starts))


def without_duplicates(data: VectorSet, starts: Index, held_out: Index) -> Index:
    """The windows of `starts` none of whose rows is a near-duplicate of a held-out row."""
    rows, others = rows_of(starts), data.rows(held_out)
    repeated = np.zeros(len(rows), dtype=bool)
    for some in chunks(len(rows), _COMPARED_ROWS):
        repeated[some] = near_duplicates(data.rows(rows[some]), others)
    return starts[~np.isin(window_rows(starts), rows[repeated]).any(axis=1)]


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
    data: VectorSet, unseen_domain: str = UNSEEN_DOMAIN
) -> tuple[Vectors, NDArray[np.int32]]:
    """Vectors (n, 768) of the training side and the article of each, in reading order.

    A reference bank may be made of them: no article of validation, test or unseen
    domain is in it, nor a near-duplicate of one of their vectors.
    """
    rows = rows_of(split_by_article(data, unseen_domain=unseen_domain).train)
    return data.rows(rows), np.asarray(data.article[rows], dtype=np.int32)


def write_training_vectors(data: VectorSet, path: Path, unseen_domain: str) -> tuple[int, int]:
    """Write the vectors of the training side as float16; returns the number of vectors and of articles."""
    vectors, articles = training_vectors(data, unseen_domain)
    if path.suffix == ".npz":  # an .npy has no room for the encoder
        arrays = io.BytesIO()
        rows, sha256 = vectors.astype(np.float16), data.encoder_sha256
        np.savez(arrays, vectors=rows, encoder=data.encoder_id, encoder_sha256=sha256)
        write_whole(path, arrays.getvalue())
    else:
        with writing_rows(path, len(vectors), VECTOR_DIM, np.float16) as output:
            output.put(slice(0, len(vectors)), vectors)
    return len(vectors), len(np.unique(articles))


def write_sample(
    data: VectorSet, path: Path, *, vectors: int, seed: int, unseen_domain: str = UNSEEN_DOMAIN
) -> int:
    """Write the sample that ships, as float16, and return the number of its windows.

    It holds contiguous stretches of test articles (slice `id`) and of the unseen domain (slice `ood`),
    with the true next vectors in them, and nothing that any shipped model was trained on.
    """
    if vectors < 2 * WINDOW:
        raise DataError(f"a sample of {vectors} vectors holds no windows; ask for more")
    split, draw = split_by_article(data, unseen_domain=unseen_domain), np.random.default_rng(seed)
    inside = _stretches(data, split.test, int(vectors * IN_DISTRIBUTION_SHARE), draw)
    outside = _stretches(data, split.unseen, vectors - sum(map(len, inside)), draw)
    rows = inside + outside
    articles = [int(data.article[stretch[0]]) for stretch in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = io.BytesIO()
    np.savez_compressed(
        arrays,
        vectors=np.asarray(data.vectors[np.concatenate(rows)], dtype=np.float16),
        article=np.repeat(np.arange(len(rows), dtype=np.int32), [len(r) for r in rows]),
        article_name=data.article_name[articles],
        article_domain=data.article_domain[articles],
        encoder=data.encoder_id,
        article_slice=np.array(["id"] * len(inside) + ["ood"] * len(outside)),
    )
    write_whole(path, arrays.getvalue())
    return sum(len(stretch) - WINDOW + 1 for stretch in rows)


def _stretches(data: VectorSet, starts: Index, vectors: int, draw: np.random.Generator) -> list[Index]:
    """One stretch of at most 40 rows from each of several articles, `vectors` rows in all."""
    chosen: list[Index] = []
    for article in draw.permutation(np.unique(data.article[starts])):
        own = starts[data.article[starts] == article]
        rows = np.arange(own[0], own[-1] + WINDOW)
        length = min(len(rows), STRETCH_VECTORS_MAX, vectors - sum(map(len, chosen)))
        if length < WINDOW:
            break
        first = int(draw.integers(len(rows) - length + 1))
        chosen.append(rows[first : first + length])
    return chosen
