"""Fits what a worker evaluates: the blend's weights, the score of the gain, the expected cosines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.calibration.windows import Slice
from amn.evaluation.metrics import Cosines

BINS = 6
WEIGHT_GRID = np.arange(0.0, 1.01, 0.05)
RIDGE = 30.0
ROUNDS = 1000


def fit_linear(rows: NDArray[np.float64], target: Cosines) -> dict[str, Any]:
    """A linear model of the features (n, 5), as it is stored: ridge regression on standardised columns.

    Source: Hoerl and Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", 1970.
    """
    scale, centre = rows.std(0), rows.mean(0)
    columns = (rows - centre) / scale
    penalty = RIDGE * np.eye(columns.shape[1])
    coefficients = (
        np.linalg.solve(columns.T @ columns + penalty, columns.T @ (target - target.mean())) / scale
    )
    intercept = float(target.mean() - centre @ coefficients)
    return {"kind": "linear", "coefficients": coefficients.tolist(), "intercept": intercept}


def fit_constant(target: Cosines) -> dict[str, Any]:
    """A model that does not rank: it only says where a fallback has a weight at all."""
    mean = float(target.mean()) if len(target) else 0.0
    return {"kind": "linear", "coefficients": [], "intercept": mean}


def fit_weights(data: Slice) -> tuple[list[float], list[float]]:
    """The fallback's weight by novelty: edges and values.

    In each bin of equally many windows, the weight whose gain over AMN alone has the highest lower
    95 % bound over resampled articles; 0 unless that bound is above zero, so that a blend is never
    on the strength of a mean alone.
    """
    novelty = data.rows[:, 0]
    edges = np.quantile(novelty, np.linspace(0, 1, BINS + 1))[:-1]
    place = np.searchsorted(edges, novelty, side="right") - 1
    weights = []
    for index in range(BINS):
        here = place == index
        bounds = [_lower_bound(data, here, weight) for weight in WEIGHT_GRID]
        best = int(np.argmax(bounds))
        weights.append(float(WEIGHT_GRID[best]) if bounds[best] > 0 else 0.0)
    return [float(e) for e in edges], weights


def _lower_bound(data: Slice, here: NDArray[np.bool_], weight: float) -> float:
    gain = (data.final(np.full(len(data), weight)) - data.fast)[here]
    return float(np.quantile(resampled_means(gain, data.articles[here]), 0.05))


def resampled_means(values: Cosines, articles: NDArray[np.integer], seed: int = 0) -> Cosines:
    """Means over articles drawn with replacement, (ROUNDS,)."""
    _, member = np.unique(articles, return_inverse=True)
    sums, sizes = np.bincount(member, values), np.bincount(member)
    draws = np.random.default_rng(seed).integers(len(sums), size=(ROUNDS, len(sums)))
    return np.asarray(sums[draws].sum(1) / sizes[draws].sum(1))


def chosen(score: Cosines, rate: float) -> NDArray[np.float64]:
    """How much of each window is escalated, 0 to 1, when the best `rate` of all are.

    Equal scores share what is left, as first come, first served does in the long run.
    """
    budget = rate * len(score)
    _, member, counts = np.unique(-score, return_inverse=True, return_counts=True)
    before = np.concatenate(([0], np.cumsum(counts)[:-1]))
    share = np.clip((budget - before) / counts, 0.0, 1.0)
    made: NDArray[np.float64] = share[member]
    return made
