"""The drift rules on made-up days: what pages, what is a ticket, what is silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from ops.clock import BLOCK_MIN, BLOCKS_PER_DAY
from ops.drift.lab.synthetic import Scenario, sums
from ops.drift.measures.blocks import ALL, Block, Traffic
from ops.drift.measures.stored import dumps
from ops.drift.rules.drift import evaluate_drift
from ops.drift.settings import JudgeSettings
from ops.drift.state import JudgeState
from ops.findings import Finding

DAY = BLOCKS_PER_DAY
HOUR = DAY // 24
MODEL = "m"
#: Busy and even, so that an outcome does not hang on a draw.
CALM = Scenario(
    rate_per_s=200,
    sample=0.02,
    ood_share=0.3,
    wander=0.0,
    mixture=0.0,
    weekend=0.0,
    lanes=2,
    lane_spread=0.02,
)
SETTINGS = JudgeSettings(learn_max_h=48)
Floats = NDArray[np.float64]


def days(count: float, drop: tuple[float, float] = (0.0, 0.0), seed: int = 0, **changes: object) -> Floats:
    """(lanes, 6, 2, T) of `count` days."""
    scenario = replace(CALM, **changes)  # type: ignore[arg-type]
    whole = sums(scenario, int(np.ceil(count)), np.random.default_rng(seed), drop)
    return whole[..., : round(count * DAY)]


class World:
    """Traffic that grows, and a judge that looks at it every so often."""

    def __init__(self, settings: JudgeSettings = SETTINGS) -> None:
        self.settings = settings
        self.state = JudgeState()
        self.past = np.zeros((2, 6, 2, 0))
        self.findings: list[Finding] = []
        self.pages: list[tuple[int, str, str]] = []

    @property
    def now(self) -> int:
        return self.past.shape[-1]

    def live(self, more: Floats, every: int = HOUR // 2) -> World:
        """Lives through `more`, judging each half hour; notes when a page begins."""
        for at in range(0, more.shape[-1], every):
            self.past = np.concatenate([self.past, more[..., at : at + every]], axis=-1)
            before = self.firing("page")
            found = evaluate_drift(self.traffic(), self.state, self.now * BLOCK_MIN * 60_000, self.settings)
            # What is stored and read again must judge alike.
            self.state = JudgeState.from_json(json.loads(dumps(found.state)))
            self.findings = found.findings
            self.pages += [(self.now, *key) for key in self.firing("page") - before]
        return self

    def traffic(self) -> Traffic:
        lanes = {name: self.past[i] for i, name in enumerate(("a", "b"))}
        minutes = np.where(self.past[:, 0].sum((0, 1)) > 0, float(BLOCK_MIN), 0.0)
        series = {MODEL: {**lanes, ALL: self.past.sum(0)}} if minutes.any() else {}
        blocks = [Block()] * self.now
        return Traffic(first_block=0, series=series, minutes={MODEL: minutes}, blocks=blocks)

    def firing(self, severity: str) -> set[tuple[str, str]]:
        return {(f.rule, f.lane) for f in self.findings if f.state == "firing" and f.severity == severity}

    def one(self, rule: str, lane: str = ALL) -> Finding:
        return next(f for f in self.findings if (f.rule, f.lane) == (rule, lane))


@pytest.fixture(scope="module")
def healthy() -> Callable[[], World]:
    """Two days in health, baseline frozen; each call gives a world of its own."""
    world = World().live(days(2))

    def copy() -> World:
        again = World()
        again.state = JudgeState.from_json(json.loads(dumps(world.state)))
        again.past, again.findings = world.past, world.findings
        return again

    return copy


def test_health_is_ok_and_the_baseline_is_frozen(healthy: Callable[[], World]) -> None:
    world = healthy()
    assert world.state.models[MODEL].frozen
    assert {f.state for f in world.findings if f.rule != "input_drift"} == {"ok"}  # nobody scores inputs
    assert {f.rule for f in world.findings} == {"ood_delta", "fast_drop", "level", "input_drift"}
    base = world.state.models[MODEL].baselines[ALL]
    assert base.delta == pytest.approx(0.0778, abs=0.005)


def test_an_ood_drop_pages_once_and_is_taken_apart(healthy: Callable[[], World]) -> None:
    world = healthy().live(days(0.5, (0.06, 0.0), seed=1))
    assert [(rule, lane) for _, rule, lane in world.pages] == [("fast_drop", ALL)]
    assert world.pages[0][0] - 2 * DAY <= 2 * HOUR
    values = world.one("fast_drop").values
    assert values["change_ood"] == pytest.approx(-0.06, abs=0.01)
    assert values["change_id"] == pytest.approx(0.0, abs=0.01)
    assert abs(int(values["changed_at_min"]) - 2 * 24 * 60) <= 60
    # The lanes see it too, and stand beside the page: nobody is told twice.
    assert world.firing("ticket") == {("fast_drop", "a"), ("fast_drop", "b")}
    assert {f.beside for f in world.findings if f.state == "firing"} == {"", "fast_drop"}


def test_the_24_h_rule_sees_it_alone_when_it_came_too_slowly_for_the_fast_one() -> None:
    """With the fast detector's bar out of reach, the 24 h rule still pages, later."""
    world = World(JudgeSettings(learn_max_h=48)).live(days(2))
    world.state.models[MODEL].detectors.clear()
    world.live(days(1, (0.045, 0.0), seed=1))
    assert ("ood_delta", ALL) in {(rule, lane) for _, rule, lane in world.pages}
    assert world.one("ood_delta").values["drop"] == pytest.approx(0.045, abs=0.01)


def test_a_recovery_ends_the_page_and_24_h_of_memory_do_not_bring_it_back(
    healthy: Callable[[], World],
) -> None:
    world = healthy().live(days(1, (0.06, 0.0), seed=1)).live(days(1.5, seed=2))
    assert len(world.pages) == 1
    assert world.firing("page") == set()
    assert world.one("ood_delta").state == "ok"


def test_an_equal_fall_of_both_pages_by_level_and_not_by_delta(healthy: Callable[[], World]) -> None:
    world = healthy().live(days(1, (0.08, 0.08), seed=1))
    assert {rule for _, rule, _ in world.pages} == {"level"}
    assert world.one("ood_delta").state == "ok"
    assert world.one("fast_drop").state == "ok"


def test_a_better_id_mean_never_pages(healthy: Callable[[], World]) -> None:
    world = healthy().live(days(1.2, (0.0, -0.08), seed=1))
    assert world.pages == []
    assert world.one("ood_delta").severity == "ticket"
    assert world.one("ood_delta").state == "firing"


def test_an_improvement_of_both_is_silence(healthy: Callable[[], World]) -> None:
    world = healthy().live(days(1.2, (-0.05, -0.05), seed=1))
    assert world.firing("page") | world.firing("ticket") == set()


def test_a_changed_mixture_of_lanes_is_a_ticket(healthy: Callable[[], World]) -> None:
    """OOD traffic moves from the better lane to the worse; neither lane's means move."""
    spread = World().live(days(2, lane_spread=0.05))
    more = days(1.2, seed=1, lane_spread=0.05)
    moved = more.copy()
    for stat in range(6):
        moved[0, stat, 0], moved[1, stat, 0] = 1.8 * more[0, stat, 0], 0.2 * more[1, stat, 0]
    spread.live(moved)
    assert spread.pages == []
    assert spread.one("ood_delta").severity == "ticket"
    assert spread.one("ood_delta").values["drop"] == pytest.approx(0.04, abs=0.01)
    assert abs(float(spread.one("ood_delta").values["drop_fixed_mixture"])) < 0.01


def test_one_lane_that_drops_pages_for_that_lane(healthy: Callable[[], World]) -> None:
    more = days(0.3, seed=1)
    bad = days(0.3, (0.1, 0.0), seed=1)
    more[0] = bad[0]
    world = healthy().live(more)
    assert world.pages[0][1:] in {("fast_drop", "a"), ("fast_drop", ALL)}
    assert {lane for _, _, lane in world.pages} <= {"a", ALL}
    assert world.one("fast_drop", "b").state == "ok"


def test_no_data_is_neither_ok_nor_a_page_nor_a_recovery(healthy: Callable[[], World]) -> None:
    silent = healthy().live(np.zeros((2, 6, 2, DAY // 2)))
    assert silent.pages == []
    assert silent.one("ood_delta").state == "insufficient"
    assert silent.state.models[MODEL].silent_since_ms > 0
    ill = healthy().live(days(0.25, (0.06, 0.0), seed=1)).live(np.zeros((2, 6, 2, DAY // 2)))
    assert ill.firing("page") == {("fast_drop", ALL)}


def test_thin_traffic_is_insufficient_and_does_not_flap() -> None:
    world = World().live(days(4, rate_per_s=1.0, sample=0.01), every=2 * HOUR)
    assert world.pages == []
    assert {f.state for f in world.findings} == {"insufficient"}


def test_before_there_is_a_baseline_the_day_before_is_the_reference_and_it_is_latched() -> None:
    settings = JudgeSettings(learn_requests_min=10**9)  # never enough for a baseline
    world = World(settings).live(days(2)).live(days(1.8, (0.08, 0.0), seed=1))
    assert [rule for _, rule, _ in world.pages][:1] == ["ood_delta"]
    # 43 hours after the drop, 24 h and the 24 h before are nearly alike; the latch still knows.
    assert world.one("ood_delta").state == "firing"
    assert world.one("ood_delta").values["reference"] == "previous"


def test_what_is_ill_is_never_learned() -> None:
    world = World(JudgeSettings(learn_max_h=168)).live(days(1.1))
    learned = world.state.models[MODEL].learned_block
    base = world.state.models[MODEL].baselines[ALL].delta
    world.live(days(2.5, (0.06, 0.0), seed=1))
    assert world.state.models[MODEL].learned_block == learned
    assert world.state.models[MODEL].baselines[ALL].delta == base


def test_a_baseline_grows_day_by_day_until_it_is_frozen() -> None:
    world = World(JudgeSettings(learn_max_h=72)).live(days(1.1))
    assert not world.state.models[MODEL].frozen
    world.live(days(2.2, seed=1))
    base = world.state.models[MODEL].baselines[ALL]
    assert world.state.models[MODEL].frozen
    assert base.blocks >= 3 * DAY
    world.live(days(1.5, seed=2))
    assert world.state.models[MODEL].baselines[ALL].blocks == base.blocks


def test_card_strict_is_the_sentence_of_the_card_and_nothing_else() -> None:
    world = World(JudgeSettings(card_strict=True)).live(days(2)).live(days(1, (0.0, -0.05), seed=1))
    finding = world.one("ood_delta")
    # The mean in distribution got better, and the card's sentence calls that a drop.
    assert (finding.state, finding.severity, finding.evaluations) == ("firing", "page", 1)
    world.live(days(1.1, (0.0, -0.05), seed=2))
    assert world.one("ood_delta").state == "ok"  # and it forgets by itself


def test_a_model_that_was_replaced_is_not_judged_but_still_known(
    healthy: Callable[[], World],
) -> None:
    world = healthy().live(np.zeros((2, 6, 2, 2 * DAY)), every=6 * HOUR)
    assert world.findings == []
    assert MODEL in world.state.models


def test_the_state_that_comes_in_is_left_alone(healthy: Callable[[], World]) -> None:
    world = healthy()
    before = dumps(world.state)
    evaluate_drift(world.traffic(), world.state, 10**9, world.settings)
    assert dumps(world.state) == before
