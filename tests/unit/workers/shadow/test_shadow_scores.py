"""Scores in integers: exact, bounded, and in the right bins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from workers.shadow.scores import (
    BINS,
    MILLION,
    Half,
    Labels,
    increments,
    minute_of,
    prediction_half,
    truth_half,
)

LABELS = Labels("amn_card@0123456789ab", "policy/procedure", "ood")
ENTRY = b"1795501008351-3"


def units(seed: int, *shape: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((*shape, 768)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def stats(prediction: Half, truth: Half) -> dict[str, int]:
    return {Labels.parse(field)[1]: amount for field, amount in increments(prediction, truth)}


def test_scores_are_the_cosines_of_the_float32_vectors_within_float16() -> None:
    context, amn, fallback = units(0, 5), units(1), units(2)
    truth = amn + fallback + context[-1]
    truth /= np.linalg.norm(truth)
    found = stats(prediction_half(ENTRY, LABELS, context, amn, fallback), truth_half(truth))
    mean = context.mean(axis=0)
    expected = {
        "amn": amn @ truth,
        "fallback": fallback @ truth,
        "last": context[-1] @ truth,
        "mean": mean @ truth / np.linalg.norm(mean),
        "coherence": np.mean([context[i] @ context[i + 1] for i in range(4)]),
    }
    for name, value in expected.items():
        assert found[f"{name}.sum"] == pytest.approx(value * MILLION, abs=60)
        assert found[f"{name}.squares"] == pytest.approx(value**2 * MILLION, abs=60)
    assert (found["n"], found["fallback.n"]) == (1, 1)


def test_without_a_fallback_its_sums_are_not_touched() -> None:
    found = stats(prediction_half(ENTRY, LABELS, units(0, 5), units(1), None), truth_half(units(2)))
    assert not [name for name in found if name.startswith("fallback")]


@pytest.mark.parametrize(("sign", "bin_"), [(1, BINS - 1), (-1, 0)])
def test_the_ends_of_the_scale_are_in_the_outermost_bins(sign: int, bin_: int) -> None:
    amn = units(1)
    found = stats(prediction_half(ENTRY, LABELS, units(0, 5), amn, None), truth_half(sign * amn))
    assert found[f"h{bin_}"] == 1
    assert found["amn.sum"] == sign * MILLION


def test_an_orthogonal_truth_is_in_the_bin_that_begins_at_zero() -> None:
    amn, truth = np.eye(2, 768, dtype=np.float32)
    assert stats(prediction_half(ENTRY, LABELS, units(0, 5), amn, None), truth_half(truth))["h100"] == 1


def test_a_context_whose_mean_is_zero_scores_zero() -> None:
    row = units(1)
    context = np.stack([row, -row, row, -row, np.zeros_like(row)])
    found = stats(prediction_half(ENTRY, LABELS, context, row, None), truth_half(row))
    assert found["mean.sum"] == 0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rotation=st.integers(1, 767))
def test_the_order_of_the_additions_does_not_change_a_score(seed: int, rotation: int) -> None:
    context, amn, truth = units(seed, 5), units(seed + 1), units(seed + 2)
    turned = [np.roll(vectors, rotation, axis=-1) for vectors in (context, amn, truth)]
    assert stats(prediction_half(ENTRY, LABELS, context, amn, None), truth_half(truth)) == stats(
        prediction_half(ENTRY, LABELS, turned[0], turned[1], None), truth_half(turned[2])
    )


def test_a_half_survives_its_storage() -> None:
    for half in (truth_half(units(0)), prediction_half(ENTRY, LABELS, units(0, 5), units(1), units(2))):
        assert Half.parse(half.kind, half.head, half.data) == half


@pytest.mark.parametrize(
    ("kind", "head", "size"),
    [("truth", "0|0|", 10), ("prediction", "1|2|m", 1536), ("rumour", "0|0|", 1536), ("truth", "x", 1536)],
)
def test_a_half_of_something_else_is_refused(kind: str, head: str, size: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        Half.parse(kind, head, bytes(size))


def test_the_event_is_in_the_minute_of_its_stream_entry() -> None:
    assert minute_of(b"119999-7") == 1
    assert prediction_half(b"120000-0", LABELS, units(0, 5), units(1), None).minute == 2


@given(
    st.builds(Labels, st.text(), st.text(), st.text(), st.text()), st.sampled_from(["n", "amn.sum", "h199"])
)
def test_labels_of_any_text_are_read_back(labels: Labels, stat: str) -> None:
    field = labels.field(stat)
    assert field.count("|") == 4
    assert Labels.parse(field) == (labels, stat)


def test_a_field_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="five parts"):
        Labels.parse("answered")
