"""Baselines: means, daily rhythm, and what is stored of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from ops.drift.measures.baseline import TAU_DEFAULT, Reference, learn, previous, rhythm
from ops.drift.measures.stored import dumps

Floats = NDArray[np.float64]


def traffic(
    days: int, *, wave: float = 0.0, n: int = 60, seed: int = 0, means: tuple[float, float] = (0.6, 0.5)
) -> Floats:
    """(6, 2, T), with the same daily wave on both slices, busier by day."""
    random = np.random.default_rng(seed)
    t = np.arange(days * 288)
    counts = random.poisson(n * (1 + 0.5 * rhythm(t)[1]), (2, len(t))).astype(float)
    true = np.array(means)[:, None] + wave * rhythm(t)[0]
    x = random.normal(true, 0.15 / np.sqrt(np.maximum(counts, 1)))
    return np.stack([counts, counts, counts, counts, counts * x, counts * (x * x + 0.0225)])


def test_a_rhythm_is_found_and_the_mean_is_freed_of_it() -> None:
    found = learn(traffic(3, wave=0.03), 0)
    assert found.mean == pytest.approx([0.6, 0.5], abs=0.004)
    assert found.rhythm[:, 0] == pytest.approx([0.03, 0.03], abs=0.004)
    assert found.expected(0, 288)[0] == pytest.approx(0.6 + 0.03 * rhythm(np.arange(288))[0], abs=0.01)


def test_without_a_rhythm_there_is_none() -> None:
    strong = [bool(learn(traffic(1, seed=seed), 0).rhythm.any()) for seed in range(20)]
    assert sum(strong) <= 2


def test_a_mean_is_known_as_well_as_its_requests_allow() -> None:
    found = learn(traffic(2), 0)
    assert found.n == pytest.approx([2 * 288 * 60] * 2, rel=0.05)
    assert found.spread == pytest.approx([0.0225, 0.0225], rel=0.05)
    assert found.variance == pytest.approx(found.spread * found.inflation[1:] / found.n)
    assert found.inflation == pytest.approx([1, 1, 1], abs=0.4)


def test_days_that_wander_are_remembered() -> None:
    days = [traffic(1, n=200, seed=day, means=(0.6 + 0.02 * (day % 2), 0.5)) for day in range(8)]
    assert learn(np.concatenate(days, axis=-1), 0).tau == pytest.approx(0.02 * 1.4826 / 2**0.5, rel=0.3)
    assert learn(traffic(3), 0).tau == TAU_DEFAULT


def test_lanes_are_remembered_by_share_and_mean() -> None:
    one, other = traffic(1, n=30), traffic(1, n=90, seed=1)
    found = learn(one + other, 0, {"a": one, "b": other, "empty": np.zeros_like(one)})
    assert set(found.strata) == {"a", "b"}
    assert found.strata["a"][:2] == pytest.approx((0.25, 0.25), abs=0.02)
    assert found.strata["b"][2:] == pytest.approx((0.6, 0.5), abs=0.01)


def test_a_stored_baseline_is_the_same_one() -> None:
    found = learn(traffic(2, wave=0.03), 77, {"a": traffic(2)})
    again = Reference.from_json(json.loads(dumps(found)))
    assert dumps(again) == dumps(found)
    assert again.strata["a"] == pytest.approx(found.strata["a"])


def test_the_day_before_is_a_reference_without_rhythm() -> None:
    found = previous(traffic(1, wave=0.03), 0)
    assert found.kind == "previous"
    assert not found.rhythm.any()
    assert found.delta == pytest.approx(0.1, abs=0.01)
