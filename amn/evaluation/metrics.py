"""Cosines of predictions by window, and their means with intervals that resample whole articles.

Windows of one article are not independent. Errors over batches or overlapping windows would look
several times more certain than they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amn.data.vectors import Index, Vectors, VectorSet, chunks
from amn.errors import DataError

BOOTSTRAP_ROUNDS = 2000
WINDOWS_PER_BATCH = 1024

Cosines = NDArray[np.float64]
Predict = Callable[[Tensor], Tensor]
#: Changes contexts (B, 5, 768) before they are predicted from.
Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over windows with its uncertainty over articles."""

    mean: float
    standard_error: float
    low: float
    high: float
    n: int
    articles: int

    def to_dict(self) -> dict[str, float | int]:
        """Rounded plain values for JSON."""
        return {name: round(value, 5) for name, value in dataclasses.asdict(self).items()}


def estimate(values: Cosines, articles: NDArray[np.integer], seed: int = 0) -> Estimate:
    """Mean of `values` (n,) with a 95 % interval; differences of two models make a paired comparison."""
    if len(values) == 0:
        raise DataError("no windows to judge (n = 0); check the split or the domain name")
    if len(values) != len(articles):
        raise DataError(f"{len(values)} values but {len(articles)} article ids")
    means = resampled_means(values, articles, seed)
    low, high = np.percentile(means, (2.5, 97.5))
    return Estimate(
        mean=float(np.mean(values)),
        standard_error=float(means.std(ddof=1)),
        low=float(low),
        high=float(high),
        n=len(values),
        articles=len(np.unique(articles)),
    )


def resampled_means(
    values: Cosines, articles: NDArray[np.integer], seed: int = 0, rounds: int = BOOTSTRAP_ROUNDS
) -> Cosines:
    """Means of `values` (n,) over articles that are drawn with replacement, (rounds,)."""
    _, member = np.unique(articles, return_inverse=True)
    sums, sizes = np.bincount(member, values), np.bincount(member)
    draws = np.random.default_rng(seed).integers(len(sums), size=(rounds, len(sums)))
    return np.asarray(sums[draws].sum(1) / sizes[draws].sum(1))


def predict_windows(predict: Predict, data: VectorSet, starts: Index, edit: Edit | None = None) -> Vectors:
    """Predictions (n, 768) for windows; `edit` may change the contexts (B, 5, 768) first."""
    predicted = []
    with torch.inference_mode():
        for rows in chunks(len(starts), WINDOWS_PER_BATCH):
            context = torch.from_numpy(data.windows(starts[rows])[:, :-1]).contiguous()
            predicted.append(predict(context if edit is None else edit(context)).float().cpu())
    return torch.cat(predicted).numpy()


def window_cosines(predict: Predict, data: VectorSet, starts: Index) -> Cosines:
    """Cosine of prediction and true next vector, (n,)."""
    return cosine(predict_windows(predict, data, starts), data.next_vectors(starts))


def cosine(a: Vectors, b: Vectors) -> Cosines:
    """Row-wise cosine of two (n, 768) arrays of unit vectors."""
    return np.asarray(np.einsum("nd,nd->n", a, b, dtype=np.float64))


def context_mean(x: Tensor) -> Tensor:
    """Baseline without parameters: the normalised mean of the five vectors."""
    return torch.nn.functional.normalize(x.mean(1), dim=-1)


def last_vector(x: Tensor) -> Tensor:
    """Baseline without parameters: the newest of the five vectors."""
    return x[:, -1]


BASELINES: dict[str, Predict] = {"context_mean": context_mean, "last_vector": last_vector}


def mean_baselines(data: VectorSet, starts: Index) -> dict[str, float]:
    """Mean cosine of each baseline on the windows."""
    return {
        name: round(float(window_cosines(predict, data, starts).mean()), 5)
        for name, predict in BASELINES.items()
    }


def coherence(data: VectorSet, starts: Index) -> float:
    """Mean cosine of adjacent vectors in the windows."""
    total = 0.0
    for rows in chunks(len(starts), WINDOWS_PER_BATCH):
        windows = data.windows(starts[rows])
        total += float(np.einsum("nkd,nkd->", windows[:, 1:], windows[:, :-1], dtype=np.float64))
    return total / max(len(starts) * 5, 1)
