"""`python -m amn sample`: the small file of real held-out sequences that ships.

Contiguous stretches of test articles (slice `id`) and of the unseen domain (slice `ood`),
with the true next vectors in them: enough for a demonstration, a benchmark and a test on
real contexts, and nothing that any shipped model was trained on.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np

from amn.config import VECTOR_DIM
from amn.data.arrays import writing_rows
from amn.data.dataset import split_by_article, training_vectors
from amn.data.readers import read_vectors
from amn.data.vectors import WINDOW, Index, VectorSet
from amn.errors import DataError
from amn.files import write_whole

VECTORS_TOTAL = 2_750
IN_DISTRIBUTION_SHARE = 0.6
STRETCH_VECTORS_MAX = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the sample command."""
    parser.add_argument("--data", required=True, type=Path, help="the vector file")
    parser.add_argument("--encoder", default="", help="where the file does not name it")
    parser.add_argument("--out", required=True, type=Path, help="the .npz to write")
    parser.add_argument("--vectors", type=int, default=VECTORS_TOTAL)
    parser.add_argument("--seed", type=int, default=0)


def run_sample(options: argparse.Namespace) -> int:
    """Write the sample."""
    data = read_vectors(options.data, options.encoder)
    windows = write_sample(data, options.out, vectors=options.vectors, seed=options.seed)
    megabytes = options.out.stat().st_size / 1e6
    sys.stdout.write(f"{windows} windows in {options.out} ({megabytes:.1f} MB)\n")
    return 0


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the training-vectors command."""
    parser.add_argument("--data", required=True, type=Path, help="the vector file")
    parser.add_argument("--encoder", default="", help="where the file does not name it")
    parser.add_argument("--out", required=True, type=Path, help="the .npy to write, float16 (n, 768)")


def run_training_vectors(options: argparse.Namespace) -> int:
    """Write the vectors of the training side: what a reference bank may be made of."""
    vectors, articles = training_vectors(read_vectors(options.data, options.encoder))
    with writing_rows(options.out, len(vectors), VECTOR_DIM, np.float16) as output:
        output.put(slice(0, len(vectors)), vectors)
    count = len(np.unique(articles))
    sys.stdout.write(f"{len(vectors)} vectors of {count} articles in {options.out}\n")
    return 0


def write_sample(data: VectorSet, path: Path, *, vectors: int, seed: int) -> int:
    """Choose stretches, write them as float16, and return the number of windows.

    Raises:
        DataError: fewer vectors were asked for than one window has.
    """
    if vectors < 2 * WINDOW:
        raise DataError(f"a sample of {vectors} vectors holds no windows; ask for more")
    split = split_by_article(data)
    draw = np.random.default_rng(seed)
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
