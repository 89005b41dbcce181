"""Fits of all that a worker evaluates: the blend's weights, the score of the gain, the expected cosines."""

from __future__ import annotations

import bisect
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.calibration.windows import Slice
from amn.evaluation.metrics import Cosines, resampled_means
from amn.gate.gain import FEATURES

BINS = 6
WEIGHT_GRID = np.arange(0.0, 1.01, 0.05)
RIDGE = 30.0
ROUNDS = 1000
#: With a weight above 0; fewer say nothing about others.
ARTICLES_MIN = 10


def fit_gate(fitted: Slice) -> dict[str, Any]:
    """Blend, score of the gain and expected cosines, as they are stored.

    Where the fallback has no weight there is no gain, and nothing to rank. One that never certainly helps
    leaves next to nothing to fit on: then a constant says where it has a weight at all.
    """
    edges, weights, weight = fit_weights(fitted)
    weighted, gain = fitted.part(weight > 0), fitted.gain(weight)[weight > 0]
    features = slice(len(FEATURES))
    if len(np.unique(weighted.articles)) >= ARTICLES_MIN:
        score, model = "linear", fit_linear(weighted.rows[:, features], gain)
    else:
        mean = float(gain.mean()) if len(gain) else 0.0
        score, model = "constant", {"kind": "linear", "coefficients": [], "intercept": mean}
    expected = [fit_linear(fitted.rows[:, features], target) for target in (fitted.fast, fitted.slow)]
    return {"score": score, "model": model, "expected": expected, "weight_edges": edges, "weights": weights}


def fit_linear(rows: NDArray[np.float64], target: Cosines) -> dict[str, Any]:
    """A linear model of the features (n, 5), as it is stored: ridge regression on standardised columns.

    Source: Hoerl and Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", 1970.
    """
    scale, centre = rows.std(0), rows.mean(0)
    columns = (rows - centre) / scale
    system = columns.T @ columns + RIDGE * np.eye(columns.shape[1])
    coefficients = np.linalg.solve(system, columns.T @ (target - target.mean())) / scale
    intercept = float(target.mean() - centre @ coefficients)
    return {"kind": "linear", "coefficients": coefficients.tolist(), "intercept": intercept}


def fit_weights(data: Slice) -> tuple[list[float], list[float], NDArray[np.float64]]:
    """The fallback's weight by novelty: edges, values, and the one of each window.

    In each bin of equally many windows, the weight whose gain over AMN alone has the highest lower
    95 % bound over resampled articles; 0 unless that bound is above zero, so that a blend is never
    on the strength of a mean alone.
    """
    novelty = data.rows[:, 0]
    edges = np.quantile(novelty, np.linspace(0, 1, BINS + 1))[:-1]
    bins = np.searchsorted(edges, novelty, side="right") - 1
    weights = []
    for number in range(BINS):
        here = data.part(bins == number)
        means = (resampled_means(here.gain(weight), here.articles, rounds=ROUNDS) for weight in WEIGHT_GRID)
        bounds = [float(np.quantile(found, 0.05)) for found in means]
        best = int(np.argmax(bounds))
        weights.append(float(WEIGHT_GRID[best]) if bounds[best] > 0 else 0.0)
    return edges.tolist(), weights, np.array(weights)[bins]


def fit_threshold(data: Slice, predicted: Cosines, rate: float) -> dict[str, float]:
    """The least threshold of the gain whose rate stays below `rate` with 95 % confidence, one-sided.

    Equal gains are escalated together, so it may take all or nothing.
    """

    def upper(level: float) -> float:
        above = (predicted > level).astype(np.float64)
        return float(np.quantile(resampled_means(above, data.articles, rounds=ROUNDS), 0.95))

    levels = np.unique(predicted).tolist()
    # The rate falls as the level rises, and is 0 above the highest.
    level = levels[bisect.bisect_left(range(len(levels) - 1), True, key=lambda i: upper(levels[i]) <= rate)]
    taken = round(float((predicted > level).mean()), 4)
    return {"threshold": level, "rate": taken, "rate_upper_95": round(upper(level), 4)}
