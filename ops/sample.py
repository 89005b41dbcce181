"""The shipped sample: real sequences of vectors, cut into windows of 5 + 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from amn.data.arrays import load_npz
from ops.errors import FileRefused
from producer.messages import CONTEXT_VECTORS, DIMENSIONS
from producer.options import Options

#: Every so many requests one goes to a high-stakes lane, in turn, and one is marked as long.
HIGH_STAKES_EVERY, LONG_EVERY, LONG_TOKENS = 50, 100, 512
HIGH_STAKES = ("sci-fact", "math-derivation", "med-guideline", "policy/procedure")
_KEYS = ("vectors", "article", "article_domain", "article_slice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Windows over the sample's articles, in the order in which they are sent.

    All articles advance together, each in reading order: a short run sees every domain, and each
    request still reveals the truth of the one before it in the same article.

    Attributes:
        vectors: Shape (N, 768), float32, unit norm; rows of one article are consecutive.
        start: Shape (W,): first row of each window; its truth is row start + 5. Windows never
            cross an article.
        position: Shape (W,): index in the article of the window's newest vector.
        article: Shape (W,): article index.    ood: Shape (W,): whether its domain is unseen.
        domains: By article index.
    """

    vectors: NDArray[np.float32]
    start: NDArray[np.intp]
    position: NDArray[np.intp]
    article: NDArray[np.intp]
    ood: NDArray[np.bool_]
    domains: list[str]

    def __len__(self) -> int:
        return len(self.start)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads the file and cuts the windows.

        Raises:
            FileRefused: Missing, damaged, or not a sample.
        """
        arrays = load_npz(path, _KEYS)
        if missing := [key for key in _KEYS if key not in arrays]:
            raise FileRefused(f"the sample {path} lacks {missing[0]}; restore it from git, or give --sample")
        vectors = arrays["vectors"]
        if vectors.ndim != 2 or vectors.shape[1] != DIMENSIONS or len(vectors) != len(arrays["article"]):
            raise FileRefused(f"the sample {path} has vectors of shape {vectors.shape}; expected (N, 768)")
        if vectors.dtype.kind != "f":
            raise FileRefused(f"the sample {path} has vectors of type {vectors.dtype}; expected floats")
        return cls._windows(vectors.astype(np.float32), arrays)

    @classmethod
    def _windows(cls, vectors: NDArray[np.float32], arrays: dict[str, NDArray[np.generic]]) -> Self:
        article = arrays["article"].astype(np.intp)
        first = np.flatnonzero(np.r_[True, article[1:] != article[:-1]])
        length = np.diff(np.r_[first, len(article)])
        offset, windows = np.arange(len(article)) - np.repeat(first, length), length - CONTEXT_VECTORS
        start = np.flatnonzero(offset < np.repeat(windows, length))
        if not len(start):
            raise FileRefused("the sample has no article of six or more vectors; use another file")
        progress = (offset[start] + 0.5) / np.repeat(windows, np.maximum(windows, 0))
        start = start[np.argsort(progress, kind="stable")]
        return cls(
            vectors=vectors,
            start=start,
            position=offset[start] + CONTEXT_VECTORS - 1,
            article=article[start],
            ood=(arrays["article_slice"] == "ood")[article[start]],
            domains=[str(domain) for domain in arrays["article_domain"]],
        )

    def context(self, i: int) -> NDArray[np.float32]:
        """Shape (5, 768): what request `i` sends; the sample is repeated as often as needed."""
        row = self.start[i % len(self)]
        return self.vectors[row : row + CONTEXT_VECTORS]

    def truth(self, i: int) -> NDArray[np.float32]:
        """Shape (768,): the vector that follows the context of request `i`."""
        row = self.start[i % len(self)] + CONTEXT_VECTORS
        return self.vectors[row]  # type: ignore[no-any-return]

    def options(self, i: int, run_id: str) -> Options:
        """Returns the options of request `i`: sequence, position, domain, and a small share of hard cases."""
        w = i % len(self)
        article = int(self.article[w])
        stakes = HIGH_STAKES[i // HIGH_STAKES_EVERY % len(HIGH_STAKES)]
        return Options(
            lane=stakes if i % HIGH_STAKES_EVERY == HIGH_STAKES_EVERY - 1 else "general",
            tokens=LONG_TOKENS if i % LONG_EVERY == LONG_EVERY // 2 else 0,
            sequence=f"{run_id}.{i // len(self)}.{article}",
            position=int(self.position[w]),
            domain=self.domains[article],
            provisional=True,
        )

    def baselines(self, count: int) -> tuple[float, float]:
        """Mean cosine to the truth of the context's mean and of its last vector, over a run."""
        weight = np.full(len(self), count // len(self))  # how often each window was sent
        weight[: count % len(self)] += 1
        truth = self.vectors[self.start + CONTEXT_VECTORS]
        last = self.vectors[self.start + CONTEXT_VECTORS - 1]
        mean = sum(self.vectors[self.start + k] for k in range(CONTEXT_VECTORS))
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        of_mean, of_last = (float(weight @ np.einsum("bd,bd->b", one, truth)) for one in (mean, last))
        return of_mean / count, of_last / count
