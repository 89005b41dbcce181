"""The rules on made-up years: a short, seeded form of docs/drift.md's table."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ops.app import app
from ops.drift.lab.simulate import run
from ops.drift.lab.synthetic import CARD_MEANS, Scenario, sums
from ops.drift.measures.statistics import ID, OOD, N, X, means
from ops.drift.settings import JudgeSettings


def test_made_up_traffic_has_the_means_and_the_neighbours_that_it_says() -> None:
    scenario = Scenario(ood_share=0.5, weekend=0.0, wander=0.0, mixture=0.0, lanes=1)
    whole = sums(scenario, 10, np.random.default_rng(0)).sum(0)
    found = whole[X].sum(-1) / whole[N].sum(-1)
    # The busy hours lie at the top of the daily wave, and count for more.
    assert found == pytest.approx(np.array(CARD_MEANS) + 0.02 * 0.5 / 2, abs=0.002)
    assert scenario.inflation == pytest.approx(1.18, abs=0.01)
    flat = sums(
        Scenario(ood_share=0.5, weekend=0, wander=0, mixture=0, lanes=1, wave=0), 10, np.random.default_rng(0)
    )
    assert means(flat.sum(0)).inflation[1] == pytest.approx(1.18, abs=0.25)


def test_a_drop_begins_when_it_is_told_to_and_in_its_slice() -> None:
    calm = Scenario(wave=0, weekend=0, wander=0, mixture=0, lanes=1, ood_share=0.5)
    whole = sums(calm, 4, np.random.default_rng(0), (0.1, 0.0), 576).sum(0)
    before, after = whole[..., :576].sum(-1), whole[..., 576:].sum(-1)
    change = before[X] / before[N] - after[X] / after[N]
    assert change[OOD] == pytest.approx(0.1, abs=0.005)
    assert change[ID] == pytest.approx(0.0, abs=0.005)


@pytest.mark.slow
def test_false_pages_are_rare_and_drops_are_found_within_the_hours_that_are_promised() -> None:
    scenario = Scenario(rate_per_s=100, sample=0.01, ood_share=0.5)
    small, large = run(scenario, [0.03, 0.06], JudgeSettings(), days=73, repeats=5, seed=1)
    assert sum(count for rule, count in small["false_pages"].items() if rule != "naive") <= 2  # in a year
    assert small["delay_h_median"] <= 4
    assert large["delay_h_median"] <= 1
    # The card's bare rule waits for its window to fill.
    assert large["delay_h_median_naive"] > 8


def test_thin_traffic_makes_the_bare_rule_cry_wolf_and_ours_not() -> None:
    scenario = Scenario(rate_per_s=5, sample=0.01, ood_share=0.1)
    (found,) = run(scenario, [0.12], JudgeSettings(), days=30, repeats=5, seed=2)
    assert found["false_pages"]["naive"] > 5
    assert sum(count for rule, count in found["false_pages"].items() if rule != "naive") <= 2


def test_the_command_prints_a_table_and_json() -> None:
    arguments = ["drift", "simulate", "--drop", "0.12", "--days", "2", "--repeats", "2"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "false pages/year" in shown.output
    rows = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert rows[0]["drop"] == 0.12
    assert rows[0]["missed"] == 0
