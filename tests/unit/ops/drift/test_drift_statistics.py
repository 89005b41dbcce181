"""Means, errors, thresholds and divergences, against brute force and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from ops.drift.measures.statistics import (
    ID,
    OOD,
    divergence,
    divergence_by_chance,
    long_run_sum,
    means,
    noise,
    recent,
    threshold,
)

Floats = NDArray[np.float64]


def sums_of(ood: list[Floats], inside: list[Floats], weight: float = 1.0) -> Floats:
    """(6, 2, T) from the cosines of each block."""
    found = np.zeros((6, 2, len(ood)))
    for slice_, blocks in ((OOD, ood), (ID, inside)):
        for b, x in enumerate(blocks):
            n = len(x)
            found[:, slice_, b] = (n, n, n * weight, n * weight**2, weight * x.sum(), weight * (x * x).sum())
    return found


def independent(
    random: np.random.Generator, mean: float, sd: float = 0.15, size: int = 20, blocks: int = 100
) -> list[Floats]:
    return [random.normal(mean, sd, size) for _ in range(blocks)]


def test_means_and_delta_are_those_of_the_requests() -> None:
    random = np.random.default_rng(1)
    ood, inside = independent(random, 0.6), independent(random, 0.5)
    found = means(sums_of(ood, inside, weight=20))
    assert found.mean[OOD] == pytest.approx(np.concatenate(ood).mean())
    assert found.delta == pytest.approx(np.concatenate(ood).mean() - np.concatenate(inside).mean())
    assert found.n == pytest.approx([2000, 2000])


def test_the_error_of_independent_requests_is_the_textbook_one() -> None:
    random = np.random.default_rng(2)
    errors = [
        means(sums_of(independent(random, 0.6), independent(random, 0.5))).delta_variance for _ in range(40)
    ]
    assert math.sqrt(np.mean(errors)) == pytest.approx(0.15 * math.sqrt(2 / 2000), rel=0.1)


def test_the_error_covers_the_truth_when_neighbouring_blocks_move_together() -> None:
    """AR(1) of 0.6 from block to block: as independent requests the error would be half of it."""
    random = np.random.default_rng(3)
    found, offsets = [], []
    for _ in range(60):
        wander = np.zeros(288)
        for b in range(1, 288):
            wander[b] = 0.6 * wander[b - 1] + random.normal(0, 0.03)
        ood = [random.normal(0.6 + shift, 0.15, 40) for shift in wander]
        inside = independent(random, 0.5, size=40, blocks=288)
        found.append(means(sums_of(ood, inside)))
        offsets.append(float(found[-1].delta) - 0.1)
    stated = math.sqrt(np.mean([one.delta_variance for one in found]))
    naive = 0.15 * math.sqrt(2 / (288 * 40))
    assert np.std(offsets) > 1.8 * naive
    assert stated == pytest.approx(np.std(offsets), rel=0.3)
    assert np.mean([one.inflation[1] for one in found]) > 4


def test_slices_that_move_together_make_the_delta_surer_than_the_means() -> None:
    random = np.random.default_rng(4)
    together = random.normal(0, 0.05, 288)
    ood, inside = ([random.normal(m + s, 0.05, 40) for s in together] for m in (0.6, 0.5))
    found = means(sums_of(ood, inside))
    assert found.delta_variance < 0.5 * found.variance.sum()


def test_an_expected_rhythm_is_no_variance() -> None:
    random = np.random.default_rng(5)
    wave = 0.1 * np.sin(np.arange(288) * 2 * np.pi / 288)
    ood, inside = ([random.normal(m + s, 0.05, 40) for s in wave] for m in (0.6, 0.5))
    sums = sums_of(ood, inside)
    assert means(sums, np.stack([wave, wave])).variance[OOD] < 0.1 * means(sums).variance[OOD]


def test_more_than_one_series_at_once_gives_what_each_gives() -> None:
    random = np.random.default_rng(6)
    each = [sums_of(independent(random, 0.6), independent(random, 0.5)) for _ in range(3)]
    together = means(np.stack(each))
    for i, one in enumerate(each):
        assert together.delta_variance[i] == pytest.approx(float(means(one).delta_variance))


def test_bartlett_weights_are_those_of_the_formula() -> None:
    phi = np.array([1.0, 2.0, -1.0, 0.5])
    plain = (phi**2).sum()
    one, two = (phi[1:] * phi[:-1]).sum(), (phi[2:] * phi[:-2]).sum()
    assert long_run_sum(phi, 2) == pytest.approx(plain + 2 * (2 / 3 * one + 1 / 3 * two))


def test_no_data_is_no_number() -> None:
    found = means(np.zeros((6, 2, 10)))
    assert np.isnan(found.mean).all()
    assert (found.n == 0).all()


@pytest.mark.parametrize(
    ("per_year", "series", "previous", "expected"),
    [(1, 1, False, 3.53), (1, 1, True, 3.66), (1, 10, True, 4.28), (0.1, 1, False, 4.17)],
)
def test_thresholds_of_pickands_formula(
    per_year: float, series: int, previous: bool, expected: float
) -> None:
    assert threshold(per_year, series, previous_window=previous) == pytest.approx(expected, abs=0.01)


def test_a_sliding_day_crosses_the_threshold_about_as_often_as_promised() -> None:
    """40,000 simulated days of white noise, judged every five minutes against a fixed reference."""
    random = np.random.default_rng(7)
    u, days = threshold(3.65, 1), 40_000  # one false episode in a hundred days
    sums = np.cumsum(random.normal(size=days * 288))
    z = (sums[288:] - sums[:-288]) / math.sqrt(288)
    crossings = ((z[1:] > u) & (z[:-1] <= u)).nonzero()[0]
    episodes = 1 + (np.diff(crossings) > 288).sum()  # flickering at the threshold is one episode
    assert 0.5 * days / 100 <= episodes <= 1.2 * days / 100


def test_the_recent_window_is_an_hour_when_busy_and_longer_when_thin() -> None:
    expected, each = np.zeros((2, 288)), noise(np.array([0.0225, 0.0225]), np.ones(3))
    busy = np.zeros((6, 2, 288))
    busy[[1, 2, 3]] = 1000
    busy[4, OOD, -12:] = -20.0  # the last hour lies 0.02 low
    found = recent(busy, expected, each, 0.006)
    assert (int(found.blocks), float(found.offset[ID] - found.offset[OOD])) == (12, pytest.approx(0.02))
    thin = busy / 100
    longer = recent(thin, expected, each, 0.006)
    assert int(longer.blocks) == 125  # 2 * 0.0225 / (10 * 125) = 0.006**2
    assert float(longer.offset[ID] - longer.offset[OOD]) == pytest.approx(0.02 * 12 / 125)
    assert int(recent(busy / 10_000, expected, each, 0.006).blocks) == 288


def test_divergence_is_zero_for_the_same_and_one_for_disjoint_histograms() -> None:
    p, q = np.array([1.0, 3.0, 0.0]), np.array([0.0, 0.0, 2.0])
    assert divergence(p, 5 * p) == pytest.approx(0)
    assert divergence(p, q) == pytest.approx(1)
    assert math.isnan(divergence(p, np.zeros(3)))


def test_the_bound_of_the_divergence_holds_for_draws_of_one_distribution() -> None:
    random = np.random.default_rng(8)
    shares = random.dirichlet(np.ones(64))
    beyond = 0
    for _ in range(50):
        base, now = random.multinomial(3000, shares), random.multinomial(1000, shares)
        bound = divergence_by_chance(base.astype(float), now.astype(float), draws=300)
        beyond += divergence(base.astype(float), now.astype(float)) > bound
    assert beyond <= 2
    fewer = divergence_by_chance(base.astype(float), now.astype(float), inflation=4, draws=300)
    assert fewer > 2 * bound
