"""Rates of 1/k: nested, uniform, the same in every language, and calm."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.sampling import (
    ONE_IN_MAX,
    ONE_IN_MIN,
    RATE_MAX,
    one_in,
    sample_hash,
    sample_key,
    sampled,
    sampled_one_in,
)
from workers.shadow.rates import LaneRate, Rates, step
from workers.shadow.sampler import Sampler
from workers.shadow.settings import ShadowSettings

DOCUMENT = Path(__file__).parents[4] / "docs" / "drift-data.md"
SHADOW = ShadowSettings()


def after(minutes: list[dict[str, int]], rates: Rates | None = None, first: int = 1000) -> Rates:
    """The rates after these minutes of traffic, each taken in as soon as it was over."""
    found = rates or Rates()
    for minute, traffic in enumerate(minutes, first):
        found = step(found, minute, traffic, SHADOW)
    return found


@given(st.text(max_size=40), st.integers(ONE_IN_MIN, ONE_IN_MAX - 1))
def test_a_rarer_sample_is_part_of_every_more_frequent_one(key: str, k: int) -> None:
    if sampled_one_in(key, k + 1):
        assert sampled_one_in(key, k)
    if sampled_one_in(key, k):
        assert sampled(key, RATE_MAX)  # what producers report truths for


@pytest.mark.parametrize("k", [20, 37, 100])
def test_one_in_k_is_sampled_also_of_sequential_ids(k: int) -> None:
    found = sum(sampled_one_in(f"doc-{i // 1000}#{i % 1000}", k) for i in range(100_000))
    assert abs(found - 100_000 / k) < 4 * (100_000 / k) ** 0.5


@pytest.mark.parametrize(("rate", "k"), [(0.05, 20), (0.03, 33), (0.01, 100)])
def test_a_rate_is_the_nearest_one_in_k(rate: float, k: int) -> None:
    assert one_in(rate) == k


def test_the_document_shows_the_vectors_that_this_program_gives() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` \| `([^`]+)` \| (\d+) \| (\d+|never) \|$", DOCUMENT.read_text("utf-8"), re.MULTILINE
    )
    assert len(rows) >= 8
    for key, salt, number, largest in rows:
        assert sample_hash(key, salt) == int(number)
        fits = [k for k in range(ONE_IN_MIN, ONE_IN_MAX + 1) if sampled_one_in(key, k, salt)]
        assert (str(max(fits)) if fits else "never") == largest


@pytest.mark.parametrize(("per_s", "k"), [(1, 20), (10, 20), (25, 50), (40, 80), (1000, 100)])
def test_a_lanes_rate_aims_at_half_a_sample_a_second_within_its_bounds(per_s: int, k: int) -> None:
    found = after([{"general": 60 * per_s}] * 3)
    assert found.lanes["general"].k == k


def test_traffic_that_wavers_does_not_move_the_rate() -> None:
    found = after([{"general": 60 * 30}] * 5)
    steady = found.lanes["general"]
    found = after([{"general": 60 * n} for n in (34, 27, 33, 26, 35, 28) * 5], found, first=1005)
    assert found.lanes["general"].k == steady.k


def test_traffic_that_doubles_moves_it_after_a_while() -> None:
    found = after([{"general": 60 * 15}] * 5)
    ks = []
    for minute in range(40):
        found = after([{"general": 60 * 30}], found, first=1005 + minute)
        ks.append(found.lanes["general"].k)
    assert ks[0] == 30
    assert 50 <= ks[-1] <= 60  # within a fifth of where it should be
    assert len(set(ks)) <= 5  # in steps of a fifth or more


def test_half_of_a_change_is_seen_after_the_half_life() -> None:
    found = after([{"general": 6000}])
    found = after([{"general": 0}] * 10, found, first=1001)
    assert found.lanes["general"].traffic == pytest.approx(3000)


def test_a_lane_that_fell_silent_is_forgotten() -> None:
    found = after([{"general": 60}])
    found = after([{}] * 200, found, first=1001)
    assert found.lanes == {}


def test_rates_survive_their_storage() -> None:
    found = Rates(minute=7, shed=True, lanes={"policy/procedure": LaneRate(k=40, traffic=1234.5)})
    words = [word.encode() for word in found.words()]
    stored = dict(zip(words[::2], words[1::2], strict=True))
    assert Rates.parse(stored) == found
    assert Rates.parse({}) == Rates()


def test_a_sampler_knows_unknown_lanes_ceilings_and_shedding() -> None:
    sampler = Sampler(0.05)
    assert sampler.one_in("general") == 20
    sampler.rates = Rates(minute=1, lanes={"general": LaneRate(k=60, traffic=1.0)})
    assert [sampler.one_in(lane) for lane in ("general", "narrative")] == [60, 20]
    sampler.rates = Rates(minute=1, shed=True, lanes=sampler.rates.lanes)
    assert sampler.one_in("narrative") == 100
    fixed = Sampler(0.01)
    fixed.rates = Rates(minute=1, lanes={"general": LaneRate(k=20, traffic=1.0)})
    assert fixed.one_in("general") == 100


@pytest.mark.parametrize("k", [1, 20, 50, 100])
def test_a_worker_finds_the_keys_that_are_sampled(k: int) -> None:
    sampled_key = Sampler(1 / k, "other").sampled_key
    places = [("", f"doc-{n}", n % 7) for n in range(3000)] + [(f"r{n}", "", -1) for n in range(100)]
    for place in places:
        key = sample_key(*place)
        assert sampled_key(*place) == (key if sampled_one_in(key, k, "other") else "")
