"""A changed encoder, in the ways in which it can change: which rule pages, and what it says.

The other encoder turns half of the dimensions. A rotation keeps every cosine within one encoder's
vectors, so that it shows in the answers' scores only where both encoders meet; where they do not, the
inputs give it away.
"""

from __future__ import annotations

import pytest

from drift.world import KEYS, MODEL, Increments, Sample, Scorer, Service, Vectors, Windows
from ops.drift.memory import Memory
from ops.drift.state import Order

pytestmark = pytest.mark.timeout(300)

Pools = dict[str, list[Increments]]


def turned(windows: Windows, rotation: Vectors, since: int = 0, *, truths: bool = True) -> Windows:
    """From the other encoder: all but the first `since` vectors of each context, and the truths."""
    found = windows.turned(rotation, since)
    return found if truths else Windows(found.contexts, windows.truths)


def lived(service: Service, changed: Pools, pools: Pools, rule: str) -> None:
    """Three hours of it, and five in which it is put right: one trigger and one resolve by one rule."""
    service.live(3, changed["ood"], changed["id"])
    assert service.begun == [(rule, "")]
    service.at_worst = {one.rule: one.values for one in service.findings if one.lane == ""}
    service.live(5, pools["ood"], pools["id"])
    assert service.ended == [(rule, "")]
    assert service.begun == [(rule, "")]
    assert service.receiver.pages() == [("trigger", rule), ("resolve", rule)]


def test_an_encoder_that_changes_under_running_documents_pages_by_level(
    service: Service, sample: Sample, scored: Scorer, rotation: Vectors, pools: Pools
) -> None:
    """Contexts hold three old vectors and two new ones: both slices fall, and D even rises."""
    changed = {name: scored(turned(sample.windows(name), rotation, 3), name) for name in ("ood", "id")}
    lived(service, changed, pools, "level")
    values = service.values["level"]
    assert values["change_ood_since"] == pytest.approx(-0.047, abs=0.03)  # at the first moment
    assert values["change_id_since"] == pytest.approx(-0.09, abs=0.03)


def test_contexts_of_another_encoder_page_by_level_when_the_truths_are_of_the_old_one(
    service: Service, sample: Sample, scored: Scorer, rotation: Vectors, pools: Pools
) -> None:
    """Only the reader of the contexts changed: answers lie where the truths do not."""
    changed = {
        name: scored(turned(sample.windows(name), rotation, truths=False), name) for name in ("ood", "id")
    }
    lived(service, changed, pools, "level")
    values = service.values["level"]
    assert values["change_ood_since"] == pytest.approx(-0.315, abs=0.06)
    assert values["change_id_since"] == pytest.approx(-0.303, abs=0.06)


@pytest.mark.parametrize("named", [True, False], ids=["domains named", "domains by score"])
def test_an_encoder_that_changed_for_good_pages_by_the_inputs_and_clears_the_answers(
    service: Service, sample: Sample, scored: Scorer, rotation: Vectors, pools: Pools, *, named: bool
) -> None:
    """Contexts and truths alike: m_OOD stays, m_ID falls by 0.016, and no rule of theirs need speak."""
    changed = {
        name: scored(turned(sample.windows(name), rotation), name if named else "") for name in ("ood", "id")
    }
    lived(service, changed, pools, "input_drift")
    values = service.at_worst["input_drift"]
    assert values["recent_divergence_bits"] > 0.5
    if named:
        assert values["change_ood"] == pytest.approx(0.0, abs=0.006)
        assert values["change_id"] == pytest.approx(-0.016, abs=0.006)
    assert service.one("ood_delta").state == "ok"
    assert service.one("level").state == "ok"
    assert service.one("input_drift").state == "ok"  # nor is the day that holds those hours a ticket


def test_a_new_encoder_that_was_meant_ends_its_page_by_a_new_baseline(
    service: Service, sample: Sample, scored: Scorer, rotation: Vectors
) -> None:
    """The inputs stay where they are; a person says that this is health, and that it began now."""
    changed = {name: scored(turned(sample.windows(name), rotation), name) for name in ("ood", "id")}
    service.live(1, changed["ood"], changed["id"])
    assert service.begun == [("input_drift", "")]
    now_ms = service.minute * 60_000
    order = Order(model=MODEL, hours=0, who="ada", why="new encoder", at_ms=now_ms)
    Memory(service.admin, KEYS).order(order)
    service.live(2, changed["ood"], changed["id"])
    assert service.ended == [("input_drift", "")]
    assert service.one("input_drift").state == "insufficient"  # until the new baseline is learned
    assert service.receiver.pages() == [("trigger", "input_drift"), ("resolve", "input_drift")]
