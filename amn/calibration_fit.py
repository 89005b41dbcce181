"""Fits what a worker evaluates: the blend's weights, the score of the gain, the expected cosines.

scikit-learn does the fitting here; what leaves this module are plain lists.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold

from amn.calibration_data import Slice
from amn.gain import BANK_FEATURES, FEATURES, Model, model_of
from amn.metrics import Cosines

BINS = 6
WEIGHT_GRID = np.arange(0.0, 1.01, 0.05)
FOLDS = 5
ROUNDS = 1000

#: Scores of the gain that may be chosen, the simplest first: kind of model and number of features. The
#: constant one does not rank: it only says where a fallback has a weight at all.
SCORES = {
    "constant": ("constant", 0),
    "novelty": ("curve", 1),
    "linear": ("linear", len(FEATURES)),
    "boosted": ("trees", len(FEATURES)),
    "linear with bank": ("linear", len(FEATURES) + len(BANK_FEATURES)),
    "boosted with bank": ("trees", len(FEATURES) + len(BANK_FEATURES)),
}


def fit_model(kind: str, count: int, rows: NDArray[np.float64], target: Cosines) -> dict[str, Any]:
    """A model of the first `count` features, as it is stored."""
    if kind == "constant":
        return {
            "kind": "linear",
            "coefficients": [],
            "intercept": float(target.mean()) if len(target) else 0.0,
        }
    if kind == "curve":
        # Which way the gain goes is the data's to say.
        rising = bool(np.corrcoef(rows[:, 0], target)[0, 1] >= 0)
        fitted = IsotonicRegression(increasing=rising, out_of_bounds="clip").fit(rows[:, 0], target)
        x, y = fitted.X_thresholds_, fitted.y_thresholds_
        return {"kind": "curve", "feature": 0, "x": x.tolist(), "y": y.tolist()}
    if kind == "linear":
        scale = rows[:, :count].std(0)
        ridge = Ridge(30.0).fit(rows[:, :count] / scale, target)
        return {
            "kind": "linear",
            "coefficients": (ridge.coef_ / scale).tolist(),
            "intercept": float(ridge.intercept_),
        }
    boosted = GradientBoostingRegressor(
        n_estimators=60, max_depth=3, learning_rate=0.05, subsample=0.5, min_samples_leaf=100, random_state=0
    ).fit(rows[:, :count], target)
    return _stored_trees(boosted)


def _stored_trees(boosted: GradientBoostingRegressor) -> dict[str, Any]:
    """Equal lengths by padding; a leaf points at itself, so that walking on does no harm."""
    trees = [estimator.tree_ for estimator in boosted.estimators_.ravel()]
    nodes = max(tree.node_count for tree in trees)
    made: dict[str, list[Any]] = {name: [] for name in ("feature", "threshold", "left", "right", "value")}
    for tree in trees:
        pad = nodes - tree.node_count
        own = np.arange(tree.node_count)
        leaf = tree.children_left < 0
        made["feature"].append(np.pad(np.where(leaf, 0, tree.feature), (0, pad)).tolist())
        made["threshold"].append(np.pad(np.where(leaf, 0.0, tree.threshold), (0, pad)).tolist())
        made["left"].append(np.pad(np.where(leaf, own, tree.children_left), (0, pad)).tolist())
        made["right"].append(np.pad(np.where(leaf, own, tree.children_right), (0, pad)).tolist())
        values = tree.value.ravel() * boosted.learning_rate
        made["value"].append(np.pad(values, (0, pad)).tolist())
    depth = max(tree.max_depth for tree in trees)
    return {"kind": "trees", **made, "depth": int(depth), "intercept": float(boosted.init_.constant_.item())}


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


def out_of_fold(kind: str, count: int, data: Slice, target: Cosines) -> Cosines:
    """Predictions of models that did not see the article, (n,)."""
    made = np.empty(len(data))
    for train, held in GroupKFold(FOLDS).split(data.rows, groups=data.articles):
        made[held] = as_model(fit_model(kind, count, data.rows[train], target[train])).predict(
            data.rows[held]
        )
    return made


def as_model(stored: dict[str, Any]) -> Model:
    """The stored form as a worker has it."""
    return model_of(stored)


def choose(predicted: dict[str, Cosines], data: Slice, target: Cosines, rate: float) -> str:
    """The simplest score that ranks as well as the best one.

    The gain of escalating the best `rate` of all by each score is compared over resampled articles;
    a score is as good as the best one when it is within one standard error of the difference.
    """
    taken = {name: chosen(score, rate) * target for name, score in predicted.items()}
    best = max(taken, key=lambda name: float(taken[name].mean()))
    for name in SCORES:
        lost = taken[best] - taken[name]
        if lost.mean() <= resampled_means(lost, data.articles).std():
            return name
    return best


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
