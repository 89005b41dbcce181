"""The fast detector: run length, delay, blocks, restarts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ops.drift.measures.detector import Detector, evidence_needed
from ops.drift.measures.statistics import noise
from ops.drift.measures.stored import dumps

Floats = NDArray[np.float64]
NOISE = noise(np.array([0.0225, 0.0225]), np.ones(3))
BASE = np.array([0.6, 0.5])


def blocks(random: np.random.Generator, t: int, n: tuple[int, int] = (30, 30), drop: float = 0.0) -> Floats:
    """(6, 2, T) of independent requests; `drop` is OOD's."""
    found = np.zeros((6, 2, t))
    for slice_ in (0, 1):
        count, mean = n[slice_], BASE[slice_] - (drop if slice_ == 0 else 0)
        found[:4, slice_] = count
        if count:
            found[4, slice_] = count * random.normal(mean, 0.15 / math.sqrt(count), t)
    return found


def consumed(state: Detector, sums: Floats, first: int = 0) -> Detector:
    return state.consume(first, sums, np.broadcast_to(BASE[:, None], (2, sums.shape[-1])), NOISE)


def test_the_mean_run_length_is_at_least_what_is_promised() -> None:
    """200 series without drift, until the average M passes A = 300 blocks."""
    random = np.random.default_rng(1)
    needed, series = math.log(300), 200
    state, alarm = Detector.fresh(0, (series,)), np.full(series, 3000)
    for t in range(3000):
        sums = np.moveaxis(blocks(random, series), -1, 0)
        state = state.step(sums, BASE, NOISE)
        now = (state.log_evidence[:, 0] >= needed) & (alarm == 3000)
        alarm[now] = t
    assert alarm.mean() >= 300


@pytest.mark.parametrize(("drop", "blocks_max"), [(0.03, 90), (0.06, 24), (0.12, 8)])
def test_a_drop_is_found_in_about_the_time_that_the_formula_gives(drop: float, blocks_max: int) -> None:
    """2 s**2 ln A / d**2 blocks at one false alarm a year: 43, 11 and 3, and a half more."""
    random = np.random.default_rng(2)
    needed, delays = evidence_needed(1, 3), []
    for _ in range(20):
        state = consumed(Detector.fresh(0), blocks(random, 100))
        for t in range(100, 300):
            state = consumed(state, blocks(random, 1, drop=drop), t)
            if state.log_evidence[0] >= needed:
                break
        delays.append(t - 100)
    assert np.median(delays) <= blocks_max
    assert state.log_evidence[2] < needed  # the mean in distribution did not move


def test_the_estimate_and_the_point_of_change_are_those_of_the_drop() -> None:
    random = np.random.default_rng(3)
    state = consumed(Detector.fresh(0), blocks(random, 300, (300, 300)))
    state = consumed(state, blocks(random, 40, (300, 300), drop=0.06), 300)
    assert abs(int(state.since[0]) - 300) <= 3
    drops, errors = state.drops(), state.errors(NOISE)
    assert drops[0] == pytest.approx([0.06, 0.06, 0.0], abs=0.006)
    assert errors[0, 0] == pytest.approx(math.sqrt(2 * 0.0225 / (40 * 300)), rel=0.1)


def test_half_of_the_least_drop_gathers_no_evidence() -> None:
    random = np.random.default_rng(4)
    state = consumed(Detector.fresh(0), blocks(random, 3000, (300, 300), drop=0.007))
    assert state.log_evidence[0] < evidence_needed(1, 3)


def test_an_improvement_gathers_no_evidence() -> None:
    random = np.random.default_rng(5)
    state = consumed(Detector.fresh(0), blocks(random, 500, (300, 300), drop=-0.1))
    assert state.log_evidence[0] < 1


def test_thin_blocks_are_gathered_until_they_say_something() -> None:
    sums = blocks(np.random.default_rng(6), 12, (1, 30))
    state = consumed(Detector.fresh(0), sums[..., :9])
    assert state.waited == 9
    assert (state.evidence == -math.inf).all()
    assert consumed(state, sums[..., 9:10], 9).waited == 0  # ten of them
    few = consumed(Detector.fresh(0), blocks(np.random.default_rng(6), 12, (0, 30)))
    assert few.waited == 12  # never judged without the other slice


def test_one_wild_block_does_not_alarm() -> None:
    random = np.random.default_rng(7)
    state = consumed(Detector.fresh(0), blocks(random, 100))
    state = consumed(state, blocks(random, 1, drop=1.2), 100)
    assert state.log_evidence[0] < evidence_needed(1, 3) + 1


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(0, 60), max_size=8), seed=st.integers(0, 1000))
def test_restarts_and_repeated_blocks_change_nothing_to_the_last_bit(cuts: list[int], seed: int) -> None:
    sums = blocks(np.random.default_rng(seed), 60, (7, 40), drop=0.03)
    once = consumed(Detector.fresh(0), sums)
    state = Detector.fresh(0)
    for cut in [*cuts, 60]:
        # Whoever takes over sees the window from its start, and has the stored state.
        state = consumed(Detector.from_json(json.loads(dumps(state))), sums[..., :cut])
    assert dumps(state) == dumps(once)


def test_a_hole_in_the_blocks_is_passed_over() -> None:
    sums = blocks(np.random.default_rng(8), 20)
    state = consumed(consumed(Detector.fresh(0), sums[..., :5]), sums[..., 10:], 10)
    assert state.next_block == 20


def test_evidence_needed_grows_with_the_detectors() -> None:
    assert evidence_needed(1, 30) == pytest.approx(math.log(1.0512e5 * 30))


@pytest.mark.parametrize("drop", [0.03, 0.06, 0.12, 0.4])
@pytest.mark.parametrize(
    ("spread", "n"), [(0.0, 30), (1e-12, 30), (1e-6, 3_000), (0.0225, 30_000), (0.0225, 3_000_000)]
)
def test_a_drop_of_a_mean_that_is_known_exactly_is_found_at_once(drop: float, spread: float, n: int) -> None:
    """Scores that are all alike, or a great many of them, leave no doubt to divide by."""
    certain, random = noise(np.full(2, spread), np.ones(3)), np.random.default_rng(5)
    expected, state = np.broadcast_to(BASE[:, None], (2, 1)), Detector.fresh(0)

    def block(below: float) -> Floats:
        found = np.zeros((6, 2, 1))
        found[:4] = n
        found[4, :, 0] = n * random.normal(BASE - [below, 0], math.sqrt(spread / n))
        return found

    for t in range(300):
        state = state.consume(t, block(0.0), expected, certain)
    assert (state.log_evidence < 1).all()
    for t in range(300, 304):
        state = state.consume(t, block(drop), expected, certain)
    assert state.log_evidence[0] >= evidence_needed(1, 3)
    assert state.log_evidence[2] < 1
    assert "NaN" not in dumps(state)
    assert "Infinity" not in dumps(state)
