"""The files that other parts are made from: the sample that ships, and the source of a bank.

The sample has contiguous stretches of test articles (slice `id`) and of the unseen domain (slice `ood`),
with the true next vectors in them: enough for a demonstration, a benchmark and a test on
real contexts, and nothing that any shipped model was trained on.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from amn.config import VECTOR_DIM
from amn.data.arrays import writing_rows
from amn.data.dataset import split_by_article, training_vectors
from amn.data.vectors import WINDOW, Index, VectorSet
from amn.errors import DataError
from amn.files import write_whole

IN_DISTRIBUTION_SHARE = 0.6
STRETCH_VECTORS_MAX = 40


def write_training_vectors(data: VectorSet, path: Path) -> tuple[int, int]:
    """Write the vectors of the training side as float16, the source of a reference bank.

    An `.npz` names their encoder; an `.npy` has no room for it.

    Returns:
        The number of vectors and of articles.
    """
    vectors, articles = training_vectors(data)
    if path.suffix == ".npz":
        arrays = io.BytesIO()
        np.savez(arrays, vectors=vectors.astype(np.float16), encoder=data.encoder_id)
        write_whole(path, arrays.getvalue())
    else:
        with writing_rows(path, len(vectors), VECTOR_DIM, np.float16) as output:
            output.put(slice(0, len(vectors)), vectors)
    return len(vectors), len(np.unique(articles))


def write_sample(data: VectorSet, path: Path, *, vectors: int, seed: int) -> int:
    """Choose stretches, write them as float16, and return the number of windows.

    Raises:
        DataError: Fewer vectors were asked for than one window has.
    """
    if vectors < 2 * WINDOW:
        raise DataError(f"a sample of {vectors} vectors holds no windows; ask for more")
    split, draw = split_by_article(data), np.random.default_rng(seed)
    inside = stretches(data, split.test, int(vectors * IN_DISTRIBUTION_SHARE), draw)
    outside = stretches(data, split.unseen, vectors - sum(map(len, inside)), draw)
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


def stretches(data: VectorSet, starts: Index, vectors: int, draw: np.random.Generator) -> list[Index]:
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
