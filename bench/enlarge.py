"""python -m bench enlarge: more vectors than there are, to measure at a size that no data set at hand has.

The real vectors come first. Each further one lies between two vectors of one article, at a random place,
and is then moved by `noise` times its length in the direction of the difference of two vectors drawn
from anywhere: noise that has the directions of text, unlike a normal one. Both lengths are 1 before.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from amn.data.arrays import writing_rows
from amn.data.dataset import training_vectors
from amn.data.readers import read_vectors
from amn.data.vectors import chunks
from producer.messages import DEFAULT_ENCODER

Vectors = NDArray[np.float32]


@click.command("enlarge")
@click.argument("vectors", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The .npy to write, float16.")
@click.option("--count", default=543_556, show_default=True, help="Vectors in all.")
@click.option("--noise", default=0.5, show_default=True, help="Of a made vector, relative to its length.")
@click.option("--seed", default=0, show_default=True)
@click.option("--encoder", default=DEFAULT_ENCODER, show_default=True, help="Recipe that made VECTORS.")
def command(vectors: Path, out: Path, count: int, noise: float, seed: int, encoder: str) -> None:
    """Make a large set: the training side of VECTORS, a file with articles, then vectors in between."""
    real, article = training_vectors(read_vectors(vectors, encoder))
    if count < len(real):
        raise click.UsageError(f"{len(real)} vectors cannot be enlarged to {count}; ask for more")
    enlarge(real, article, out, count, noise, seed)
    click.echo(f"{out}: {count} vectors, the first {len(real)} real")


def enlarge(
    real: Vectors, article: NDArray[np.integer], path: Path, count: int, noise: float = 0.5, seed: int = 0
) -> None:
    """Writes a float16 array (count, 768): `real` (N, 768), unit norm, then made ones.

    Args:
        article: Shape (N,); rows of one article stand together.
    """
    starts = np.flatnonzero(np.concatenate([[True], article[1:] != article[:-1]]))
    ends = np.append(starts[1:], len(article))
    random = np.random.default_rng(seed)
    with writing_rows(path, count, 768, np.float16) as made:
        made.put(slice(0, len(real)), real)
        for rows in chunks(count - len(real)):
            size = rows.stop - rows.start
            one = random.integers(len(real), size=size)
            home = np.searchsorted(starts, one, side="right") - 1
            other = random.integers(starts[home], ends[home])
            share = random.random((size, 1), dtype=np.float32)
            away = real[random.integers(len(real), size=size)] - real[random.integers(len(real), size=size)]
            between = _unit((1 - share) * real[one] + share * real[other])
            place = slice(len(real) + rows.start, len(real) + rows.stop)
            made.put(place, _unit(between + noise * _unit(away)))


def _unit(rows: Vectors) -> Vectors:
    made: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return made
