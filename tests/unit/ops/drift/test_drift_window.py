"""Means of a window from integer sums, against numpy on the plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.drift.measures.blocks import ALL, Block, Traffic, block_of
from ops.drift.measures.statistics import ID, OOD, PREDICTIONS, Means, N, means
from workers.shadow.scores import MILLION, Labels

COSINES = st.lists(st.integers(-MILLION, MILLION), min_size=2, max_size=50)


def minute(labels: Labels, values: Sequence[int], predictions: int | None = None) -> dict[str, int]:
    """The sums of requests whose cosines are `values`, in millionths."""
    sums = {
        "n": len(values),
        "predictions": len(values) if predictions is None else predictions,
        "amn.sum": sum(values),
        "amn.squares": sum((v * v + MILLION // 2) // MILLION for v in values),
    }
    return {labels.field(stat): amount for stat, amount in sums.items()}


def labels(slice_: str, *, model: str = "m", lane: str = "general", source: str = "true") -> Labels:
    return Labels(model, lane, slice_, source)


def traffic(*minutes: Mapping[str, int]) -> Traffic:
    return Traffic.of(0, [block_of(minutes), Block()])


def of(window: Traffic, lane: str = ALL) -> Means:
    return means(window.series["m"][lane])


@given(ood=COSINES, inside=COSINES)
def test_means_deviations_and_delta_are_those_of_the_numbers(ood: list[int], inside: list[int]) -> None:
    found = of(traffic(minute(labels("ood"), ood), minute(labels("id"), inside)))
    for at, values in ((OOD, ood), (ID, inside)):
        assert found.mean[at] == pytest.approx(np.mean(values) / MILLION, abs=1e-9)
        # The squares are rounded to millionths, each by half a millionth at most.
        assert found.spread[at] == pytest.approx(np.var(values) / MILLION**2, abs=2e-6)
        assert found.n[at] == len(values)
    assert found.delta == pytest.approx((np.mean(ood) - np.mean(inside)) / MILLION, abs=1e-9)
    expected = np.var(ood) / len(ood) + np.var(inside) / len(inside)
    assert found.delta_variance == pytest.approx(expected / MILLION**2, abs=3e-6)


@given(st.lists(COSINES, min_size=1, max_size=5), st.randoms())
def test_a_window_does_not_depend_on_how_its_requests_fall_into_minutes(
    groups: list[list[int]], random: object
) -> None:
    minutes = [minute(labels("ood"), group) for group in groups]
    together = traffic(*minutes).blocks[0].sums
    random.shuffle(minutes)  # type: ignore[attr-defined]
    assert traffic(*minutes).blocks[0].sums == together


def test_no_data_is_no_delta() -> None:
    assert traffic().series == {}
    assert np.isnan(of(traffic(minute(labels("ood"), [1, 2]))).delta)
    unmatched = traffic(minute(labels("ood"), [1, 2]), minute(labels("id"), [], predictions=3))
    assert np.isnan(of(unmatched).delta)
    assert of(unmatched).n[ID] == 0
    assert np.isnan(of(unmatched).mean[ID])


def test_one_request_a_slice_gives_a_delta() -> None:
    found = of(traffic(minute(labels("ood"), [500_000]), minute(labels("id"), [400_000])))
    assert found.delta == pytest.approx(0.1)


def test_requests_whose_truth_never_came_are_counted_as_sampled() -> None:
    sums = traffic(minute(labels("ood"), [1, 2, 3], predictions=4)).series["m"][ALL].sum(-1)
    assert sums[N, OOD] / sums[PREDICTIONS, OOD] == 0.75


def test_lanes_add_up_and_models_and_sources_of_truth_are_kept_apart() -> None:
    window = traffic(
        minute(labels("ood", lane="policy/procedure"), [100_000]),
        minute(labels("ood", lane="narrative"), [300_000]),
        minute(labels("ood", model="a|b%"), [700_000]),
        minute(labels("ood", source="stronger"), [900_000]),
    )
    assert set(window.series) == {"m", "a|b%"}
    assert of(window).n[OOD] == 2
    assert of(window).mean[OOD] == pytest.approx(0.2)
    assert of(window, "narrative").mean[OOD] == pytest.approx(0.3)
    assert set(window.series["m"]) == {ALL, "policy/procedure", "narrative"}


def test_fields_of_a_later_version_are_passed_over() -> None:
    sums = minute(labels("id"), [1, 2, 3]) | {"m|general|id|true|region|n": 5, "m|general|id|true|new": 1}
    assert of(traffic(sums)).n[ID] == 3
