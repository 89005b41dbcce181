"""Window statistics from integer sums, against numpy on the plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.drift.measures.window import summary, total
from workers.shadow.scores import MILLION, SCORES, Labels

COSINES = st.lists(st.integers(-MILLION, MILLION), min_size=2, max_size=50)


def minute(labels: Labels, values: Sequence[int], predictions: int | None = None) -> dict[str, int]:
    """The sums of requests whose scores are all `values`, in millionths; no fallback was run."""
    sums = {"n": len(values), "predictions": len(values) if predictions is None else predictions}
    for score in set(SCORES) - {"fallback"}:
        sums[f"{score}.sum"] = sum(values)
        sums[f"{score}.squares"] = sum((v * v + MILLION // 2) // MILLION for v in values)
    return {labels.field(stat): amount for stat, amount in sums.items()}


def labels(slice_: str, *, model: str = "m", lane: str = "general", tier: str = "true") -> Labels:
    return Labels(model, lane, slice_, tier)


@given(ood=COSINES, inside=COSINES)
def test_means_deviations_and_delta_are_those_of_the_numbers(ood: list[int], inside: list[int]) -> None:
    window = total([minute(labels("ood"), ood), minute(labels("id"), inside)])
    found = summary(window)["m"]
    for name, values in (("ood", ood), ("id", inside)):
        score = found.slices[name].scores["amn"]
        assert score.mean == pytest.approx(np.mean(values) / MILLION, abs=1e-9)
        # The squares are rounded to millionths, each by half a millionth at most.
        assert score.sd**2 == pytest.approx(np.var(values, ddof=1) / MILLION**2, abs=2e-6)
    assert found.ood_delta is not None
    assert found.ood_delta.value == pytest.approx((np.mean(ood) - np.mean(inside)) / MILLION, abs=1e-9)
    expected = np.var(ood, ddof=1) / len(ood) + np.var(inside, ddof=1) / len(inside)
    assert found.ood_delta.standard_error**2 == pytest.approx(expected / MILLION**2, abs=3e-6)
    assert (found.ood_delta.n_ood, found.ood_delta.n_id) == (len(ood), len(inside))


@given(st.lists(COSINES, min_size=1, max_size=5), st.randoms())
def test_a_window_does_not_depend_on_how_its_requests_fall_into_minutes(
    groups: list[list[int]], random: object
) -> None:
    minutes = [minute(labels("ood"), group) for group in groups]
    together = minute(labels("ood"), [value for group in groups for value in group])
    random.shuffle(minutes)  # type: ignore[attr-defined]
    assert total(minutes) == together


def test_no_data_is_no_delta() -> None:
    assert summary({}) == {}
    assert summary(minute(labels("ood"), [1, 2]))["m"].ood_delta is None
    unmatched = total([minute(labels("ood"), [1, 2]), minute(labels("id"), [], predictions=3)])
    found = summary(unmatched)["m"]
    assert found.ood_delta is None
    assert found.slices["id"].coverage == 0
    assert math.isnan(found.slices["id"].scores["amn"].mean)


def test_one_request_a_slice_gives_a_delta_without_an_error() -> None:
    found = summary(total([minute(labels("ood"), [500_000]), minute(labels("id"), [400_000])]))["m"]
    assert found.ood_delta is not None
    assert found.ood_delta.value == pytest.approx(0.1)
    assert math.isnan(found.ood_delta.standard_error)


def test_coverage_counts_the_requests_whose_truth_never_came() -> None:
    assert summary(minute(labels("ood"), [1, 2, 3], predictions=4))["m"].slices["ood"].coverage == 0.75


def test_lanes_add_up_and_models_and_tiers_are_kept_apart() -> None:
    window = total(
        [
            minute(labels("ood", lane="policy/procedure"), [100_000]),
            minute(labels("ood", lane="narrative"), [300_000]),
            minute(labels("ood", model="a|b%"), [700_000]),
            minute(labels("ood", tier="stronger"), [900_000]),
        ]
    )
    found = summary(window)
    assert set(found) == {"m", "a|b%"}
    assert found["m"].slices["ood"].n == 2
    assert found["m"].slices["ood"].scores["amn"].mean == pytest.approx(0.2)
    assert found["m"].lanes["narrative"]["ood"].scores["amn"].mean == pytest.approx(0.3)
    assert set(found["m"].lanes) == {"policy/procedure", "narrative"}
    assert summary(window, tier="stronger")["m"].slices["ood"].n == 1


def test_fields_of_a_later_version_are_passed_over() -> None:
    sums = minute(labels("id"), [1, 2, 3]) | {"m|general|id|true|region|n": 5, "m|general|id|true|new": 1}
    assert summary(sums)["m"].slices["id"].n == 3


def test_the_fallback_is_averaged_over_the_requests_that_it_was_run_on() -> None:
    sums = minute(labels("id"), [1, 2, 3])
    sums |= {labels("id").field(s): n for s, n in (("fallback.n", 1), ("fallback.sum", 600_000))}
    fallback = summary(sums)["m"].slices["id"].scores["fallback"]
    assert (fallback.n, fallback.mean) == (1, pytest.approx(0.6))
