"""Made-up traffic with the vices of real one, drawn directly as the sums of blocks; seeded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ops.clock import BLOCK_MIN, BLOCKS_PER_DAY
from ops.drift.measures.statistics import Floats

#: The model card's means, OOD and ID.
CARD_MEANS = (0.6375, 0.5597)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """The properties of the traffic.

    Attributes:
        rate_per_s: Requests.    sample: Share that is scored.    ood_share: Share of the samples.
        truths: Share of samples whose truth comes.    sigma: Deviation of one request's cosine.
        correlation: Correlation of a request's cosine with the next one's; sampling thins it.
        wave: Amplitude of the daily rhythm of both means.    bustle: That of the rate, relative.
        weekend: How much lower both means are at weekends.
        wander, wander_h: Standard deviation and time constant of a slow wander of each mean.
        lanes: Lanes that share the traffic.    lane_spread: How much their means differ.
        mixture: Standard deviation of the slow wander of the logarithm of a lane's share.
    """

    rate_per_s: float = 100.0
    sample: float = 0.01
    ood_share: float = 0.1
    truths: float = 0.9
    sigma: float = 0.15
    correlation: float = 0.9
    wave: float = 0.02
    bustle: float = 0.5
    weekend: float = 0.01
    wander: float = 0.003
    wander_h: float = 3.0
    lanes: int = 4
    lane_spread: float = 0.03
    mixture: float = 0.1

    @property
    def inflation(self) -> float:
        """Variance of a sampled mean over that of independent requests.

        Independent sampling of a first-order series leaves one of lag correlation
        p r / (1 - (1 - p) r).
        """
        thinned = self.sample * self.correlation / (1 - (1 - self.sample) * self.correlation)
        return (1 + thinned) / (1 - thinned)


def sums(
    scenario: Scenario,
    days: int,
    random: np.random.Generator,
    drop: tuple[float, float] = (0.0, 0.0),
    drop_block: int = 0,
) -> Floats:
    """Blocks by lane, (lanes, 6, 2, T), starting on a Monday at 00:00 UTC.

    Args:
        drop: By which the means OOD and ID lie lower from `drop_block` on.
    """
    blocks = days * BLOCKS_PER_DAY
    t = np.arange(blocks)
    day = 2 * np.pi * t / BLOCKS_PER_DAY
    mean = np.array(CARD_MEANS)[:, None] - scenario.wave * np.cos(day)
    mean = mean - scenario.weekend * (t // BLOCKS_PER_DAY % 7 >= 5)
    steps = scenario.wander_h * 60 / BLOCK_MIN
    mean = mean + scenario.wander * _wander(random, (2, blocks), steps)
    mean = mean - np.array(drop)[:, None] * (t >= drop_block)
    offsets = np.linspace(-1, 1, scenario.lanes) * scenario.lane_spread if scenario.lanes > 1 else np.zeros(1)
    shares = np.exp(scenario.mixture * _wander(random, (scenario.lanes, blocks), steps))
    shares /= shares.sum(0)
    per_block = scenario.rate_per_s * scenario.sample * BLOCK_MIN * 60 * (1 - scenario.bustle * np.cos(day))
    slices = np.array([scenario.ood_share, 1 - scenario.ood_share])
    sampled = random.poisson(shares[:, None] * slices[None, :, None] * per_block).astype(np.float64)
    n = random.binomial(sampled.astype(np.int64), scenario.truths).astype(np.float64)
    noise = scenario.sigma * np.sqrt(scenario.inflation / np.maximum(n, 1))
    x = mean[None] + offsets[:, None, None] + noise * random.standard_normal(n.shape)
    squares = n * (x * x + scenario.sigma**2)
    return np.stack([sampled, n, n, n, n * x, squares], axis=1)


def _wander(random: np.random.Generator, shape: tuple[int, int], steps: float) -> Floats:
    """Rows of a first-order autoregression with unit variance and this time constant."""
    keep = float(np.exp(-1 / steps))
    noise = random.standard_normal(shape)
    noise[:, 1:] *= np.sqrt(1 - keep * keep)
    found = np.empty(shape)
    found[:, 0] = noise[:, 0]
    for t in range(1, shape[1]):
        found[:, t] = keep * found[:, t - 1] + noise[:, t]
    return found
