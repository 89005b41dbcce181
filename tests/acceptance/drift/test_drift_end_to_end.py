"""Real vectors, real model, real scoring, a compressed clock: what the judge says as things change.

Two days of traffic are drawn from the shipped sample and scored by the shadow worker's own
functions; the judge looks every five minutes of that time. In each scenario something changes for
three hours and is put right again. Alerts, their sender and the receiver are real too.
"""

from __future__ import annotations

import numpy as np
import pytest

from drift.world import Increments, Sample, Scorer, Service

pytestmark = pytest.mark.timeout(300)


def test_a_changed_domain_pages_by_the_delta_and_blames_the_ood_mean(
    service: Service,
    sample: Sample,
    scored: Scorer,
    pools: dict[str, list[Increments]],
) -> None:
    windows = sample.windows("ood", stride=3)
    changed = scored(windows, "ood")
    service.live(3, changed, pools["id"])
    assert service.begun == [("fast_drop", "")]
    assert service.values["fast_drop"]["change_ood"] < -0.02  # at the first moment
    values = service.one("fast_drop").values
    assert values["change_ood"] == pytest.approx(-0.056, abs=0.015)
    assert values["change_id"] == pytest.approx(0.0, abs=0.01)
    assert abs(int(values["changed_at_min"]) - (service.minute - 180)) <= 30
    service.live(5, pools["ood"], pools["id"])
    assert service.ended == [("fast_drop", "")]
    assert service.receiver.pages() == [("trigger", "fast_drop"), ("resolve", "fast_drop")]


@pytest.mark.slow
def test_a_degraded_model_is_one_page_though_judge_sender_and_receiver_die_or_are_ill(
    service: Service, sample: Sample, scored: Scorer, pools: dict[str, list[Increments]]
) -> None:
    """The model repeats the last vector: both means fall. The receiver gets one trigger, one resolve."""
    changed = {}
    for name in ("ood", "id"):
        windows = sample.windows(name)
        changed[name] = scored(windows, name, windows.contexts[:, -1])
    service.receiver.answers = [500, 429, 503]
    for hours in (0.4, 0.4, 1.2):
        service.live(hours, changed["ood"], changed["id"])
        service.kill_judge_and_sender()
    assert service.begun == [("level", "")]
    assert service.receiver.refused == 3
    assert service.receiver.pages() == [("trigger", "level")]
    service.receiver.stop()  # and is away while the incident ends
    service.live(2, pools["ood"], pools["id"])
    service.kill_judge_and_sender()
    service.live(2, pools["ood"], pools["id"])
    assert service.ended == [("level", "")]
    assert service.receiver.pages() == [("trigger", "level")]
    service.receiver.start()
    service.live(2, pools["ood"], pools["id"])
    assert service.receiver.pages() == [("trigger", "level"), ("resolve", "level")]
    assert service.begun == [("level", "")]


def test_a_better_model_is_no_alarm(
    service: Service, sample: Sample, scored: Scorer, pools: dict[str, list[Increments]]
) -> None:
    """One that knows more of the truth in distribution only, so that D falls by more than 0.03."""
    windows = sample.windows("id")
    mixed = windows.contexts.mean(axis=1) + 0.5 * windows.truths
    better = scored(windows, "id", mixed / np.linalg.norm(mixed, axis=1, keepdims=True))
    service.live(5, pools["ood"], better)
    assert service.begun == []
    assert service.one("fast_drop").severity == "ticket"
    assert service.one("fast_drop").state == "firing"
