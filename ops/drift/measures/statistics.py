"""Means by slice with errors that allow for autocorrelation; thresholds for watching all the time.

Pure: arrays in, numbers out, no server and no clock. A series is an array `(..., 6, 2, T)`: the six
sums named below, the slices OOD and ID, and T consecutive blocks of five minutes. Leading axes are
many series at once, as the simulation has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Axis -3: sampled requests, those with a truth, weights, squared weights, weighted cosines and
#: weighted squared cosines. A weight is one over the sampling rate at which the request was taken.
PREDICTIONS, N, W, W2, X, XX = range(6)
#: Axis -2.
OOD, ID = 0, 1
#: Which slices are in the delta, in mean OOD and in mean ID.
_WATCHED_SLICES = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
#: Bandwidth of the long-run variance, in blocks: one hour.
LAGS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """Weighted means of a window; every array has the leading axes of the series.

    Attributes:
        mean: Shape (..., 2); NaN for a slice without requests.
        variance: Of the means, shape (..., 2).
        delta_variance: Of mean OOD - mean ID; the slices may move together.
        n: Effective number of requests by Kish, (sum w)**2 / sum w**2, shape (..., 2).
        spread: Variance of one request's cosine, shape (..., 2).
        inflation: Variance of the delta, of mean OOD and of mean ID over those of independent
            requests, shape (..., 3); 1 at least.
    """

    mean: Floats
    variance: Floats
    delta_variance: Floats
    n: Floats
    spread: Floats
    inflation: Floats

    @property
    def delta(self) -> Floats:
        """Mean OOD minus mean ID."""
        return np.asarray(self.mean[..., OOD] - self.mean[..., ID])

    @property
    def noise(self) -> Floats:
        """Variance that one request adds to (delta, mean OOD, mean ID), (..., 3, 2)."""
        return noise(self.spread, self.inflation)


def delta_values(sums: Floats) -> dict[str, float]:
    """The delta and the means of one window, with standard errors and effective requests.

    Without scored requests on a side there is nothing of it, and no delta: no data is not a delta of 0.

    Args:
        sums: Shape (6, 2, T).
    """
    seen = means(sums)
    values = {"ood_delta": seen.delta, "error": np.sqrt(seen.delta_variance)}
    for name, side in (("ood", OOD), ("id", ID)):
        values |= {f"mean_{name}": seen.mean[side], f"mean_{name}_error": np.sqrt(seen.variance[side])}
        values |= {f"n_{name}": seen.n[side]}
    return {name: float(value) for name, value in values.items() if np.isfinite(value)}


def noise(spread: Floats, inflation: Floats) -> Floats:
    """Variance that one request of a slice adds to (delta, mean OOD, mean ID), (..., 3, 2).

    Neighbours are included. What moves both slices alike (a weekend) is in the means' and not in the
    delta's.
    """
    return np.asarray(inflation[..., None] * _WATCHED_SLICES * spread[..., None, :])


def means(sums: Floats, expected: Floats | None = None, lags: int = LAGS) -> Means:
    """Means of a window with Newey-West errors over the blocks' influence.

    Block b moves the mean by phi_b = sum of w (x - mean) over its requests, divided by all weight.
    The variance is sum phi_b**2 + 2 sum_l (1 - l / (lags + 1)) sum_b phi_b phi_(b-l); it is at least
    what independent requests would give.

    Args:
        sums: Shape (..., 6, 2, T).
        expected: Shape (..., 2, T): subtracted from each block's cosines first. A daily rhythm that
            is expected is no variance.
        lags: Bandwidth in blocks.

    Source: Newey and West, Econometrica 55 (1987) 703, Bartlett weights, on the linearisation of a
    ratio mean (Hajek's estimator).
    """
    w, raw = sums[..., W, :, :], sums[..., X, :, :]
    x = raw if expected is None else raw - w * expected
    with np.errstate(invalid="ignore", divide="ignore"):
        total = w.sum(-1)
        mean = x.sum(-1) / total
        phi = (x - mean[..., None] * w) / total[..., None]
        kish = total**2 / sums[..., W2, :, :].sum(-1)
        spread = np.maximum(sums[..., XX, :, :].sum(-1) / total - (raw.sum(-1) / total) ** 2, 0)
        independent = spread / kish
        variance = np.maximum(long_run_sum(phi, lags), independent)
        both = np.maximum(long_run_sum(phi[..., OOD, :] - phi[..., ID, :], lags), independent.sum(-1))
        found = np.concatenate([both[..., None], variance], axis=-1)
        plain = np.concatenate([independent.sum(-1)[..., None], independent], axis=-1)
        inflation = np.where(plain > 0, found / plain, 1.0)
    return Means(
        mean=mean,
        variance=variance,
        delta_variance=both,
        n=np.nan_to_num(kish),
        spread=spread,
        inflation=inflation,
    )


def long_run_sum(phi: Floats, lags: int = LAGS) -> Floats:
    """Variance of the sum of `phi` over its last axis, Bartlett weights; never negative."""
    found = (phi * phi).sum(-1)
    for lag in range(1, min(lags, phi.shape[-1] - 1) + 1):
        found = found + 2 * (1 - lag / (lags + 1)) * (phi[..., lag:] * phi[..., :-lag]).sum(-1)
    return np.asarray(np.maximum(found, 0))


def threshold(pages_per_year: float, series: int, *, previous_window: bool = False) -> float:
    """Standard errors that a sliding 24 h mean must be off, watched all the time.

    Near a high level u, a window mean behaves like Brownian motion with correlation 1 - C h, and
    crosses u upwards C u phi(u) times a day: C = 1 against a fixed reference, 3/2 against the window
    before. The threshold makes that `pages_per_year`, shared by `series`.

    Source: Pickands, Trans. AMS 145 (1969) 51, for locally Brownian stationary Gaussian processes.
    """
    slope = 1.5 if previous_window else 1.0
    aim = pages_per_year / 365 / max(series, 1)
    low, high = 1.0, 12.0  # u phi(u) falls from 1 on
    for _ in range(60):
        u = (low + high) / 2
        crossings = slope * u * math.exp(-u * u / 2) / math.sqrt(2 * math.pi)
        low, high = (u, high) if crossings > aim else (low, u)
    return high


class Recent(NamedTuple):
    """The mean offset of the last hours from what was expected, (..., 2), and how many blocks that took."""

    offset: Floats
    blocks: NDArray[np.int64]


def recent(sums: Floats, expected: Floats, noise: Floats, error_max: float, least: int = 12) -> Recent:
    """The shortest window up to now, `least` blocks or more, whose delta is known to `error_max`.

    Busy traffic tells after an hour whether a drop is still there; thin traffic takes longer, at
    most the length of `sums`.

    Args:
        sums: Shape (..., 6, 2, T), the last block being the newest.
        expected: Shape (..., 2, T).
        noise: Of the reference, (..., 3, 2): see `noise`.
        error_max: Standard error of the delta that is good enough.
        least: Fewest blocks.
    """
    back = sums[..., ::-1]
    w, w2 = back[..., W, :, :].cumsum(-1), back[..., W2, :, :].cumsum(-1)
    x = (back[..., X, :, :] - back[..., W, :, :] * expected[..., ::-1]).cumsum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (noise[..., 0, :, None] * w2 / w**2).sum(-2)
        good = np.nan_to_num(variance, nan=np.inf) <= error_max**2
        good[..., : min(least, good.shape[-1]) - 1] = False
        good[..., -1] = True
        at = good.argmax(-1)
        pick = at[..., None, None]
        offset = np.take_along_axis(x, pick, -1) / np.take_along_axis(w, pick, -1)
    return Recent(offset=offset[..., 0], blocks=at + 1)


def divergence(p: Floats, q: Floats) -> float:
    """Jensen-Shannon divergence of two histograms of counts, in bits: 0 alike, 1 disjoint.

    Source: Lin, IEEE Trans. Information Theory 37 (1991) 145.
    """
    return float(_divergences(p, q)) if p.sum() and q.sum() else math.nan


def _divergences(p: Floats, q: Floats) -> Floats:
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    middle, ours, theirs = (-(r * np.log2(r + (r == 0))).sum(-1) for r in ((p + q) / 2, p, q))
    return np.asarray(middle - (ours + theirs) / 2)


def divergence_by_chance(
    base: Floats, now: Floats, inflation: float = 1.0, quantile: float = 0.999, draws: int = 2000
) -> float:
    """Returns the divergence that two histograms of one distribution exceed with chance 1 - `quantile`.

    Both are drawn from their pooled shares, with as many requests as they have, divided by
    `inflation`: neighbours of one document fall into one bin. Seeded: the same counts give the same
    bound.
    """
    pooled = base + now
    if not base.sum() or not now.sum():
        return math.nan
    random = np.random.default_rng(0)
    shares = pooled / pooled.sum()
    sizes = [max(int(h.sum() / inflation), 1) for h in (base, now)]
    one, other = (random.multinomial(size, shares, draws).astype(float) for size in sizes)
    return float(np.quantile(_divergences(one, other), quantile))
