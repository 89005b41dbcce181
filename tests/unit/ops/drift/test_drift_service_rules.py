"""Objectives, canary, inputs and the monitoring itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ops.clock import BLOCK_MIN
from ops.drift.measures.baseline import learn
from ops.drift.measures.blocks import ALL, Block, Traffic, block_of
from ops.drift.rules.health import canary, monitor_health
from ops.drift.rules.inputs import input_drift, wander
from ops.drift.service.live import LOST, Service
from ops.drift.service.objectives import objectives
from ops.drift.service.table import evaluate_conditions
from ops.drift.settings import JudgeSettings
from ops.drift.state import JudgeState, ModelState
from ops.findings import Finding
from ops.health.streams import StreamFacts
from workers.shadow.scores import MILLION, Labels

SETTINGS = JudgeSettings()
NOW = 5_000_000  # a block
MODEL = "m"


def service(rate: float = 10.0, **bad: float) -> Service:
    """Counters that grew evenly for three days; `bad` are shares of the requests."""

    def at(block: int) -> dict[str, int]:
        seconds = (block - (NOW - 2000)) * BLOCK_MIN * 60
        total = round(rate * seconds)
        counters = {"answered": total, "timed": total, "sampleable": total}
        for name, share in bad.items():
            counters[name] = round(share * total)
        return counters

    counts = {n: at(n + 1) for n in range(NOW - 900, NOW)}
    return Service(now_ms=NOW * BLOCK_MIN * 60_000, counters=at(NOW), counts=counts)


def finding(found: list[Finding], rule: str) -> Finding:
    return next(one for one in found if one.rule == rule)


@pytest.mark.parametrize(
    ("share", "state", "severity"),
    [(0.195, "ok", "page"), (0.25, "firing", "ticket"), (0.35, "firing", "page"), (0.9, "firing", "page")],
)
def test_the_fallback_budget_burns_in_multiples_that_it_can_reach(
    share: float, state: str, severity: str
) -> None:
    found = finding(objectives(service(escalated=share), NOW, SETTINGS), "slo_fallback")
    assert (found.state, found.severity) == (state, severity)
    assert found.values["share_1h"] == pytest.approx(share, abs=0.001)


def test_slow_answers_page_by_burn_rate_and_are_unknown_when_nobody_counts() -> None:
    untimed = service()
    counts = {n: {"answered": one["answered"]} for n, one in untimed.counts.items()}
    untimed = Service(now_ms=untimed.now_ms, counters={"answered": 10**6}, counts=counts)
    assert finding(objectives(untimed, NOW, SETTINGS), "slo_latency").state == "insufficient"
    fast = finding(objectives(service(slow=0.04), NOW, SETTINGS), "slo_latency")
    assert fast.state == "ok"
    slow = finding(objectives(service(slow=0.5), NOW, SETTINGS), "slo_latency")
    assert (slow.state, slow.severity) == ("firing", "page")
    some = finding(objectives(service(slow=0.1), NOW, SETTINGS), "slo_latency")
    assert (some.state, some.severity) == ("firing", "ticket")


@pytest.mark.parametrize(
    ("before", "now", "state"),
    [(0, 3, "firing"), (10, 10, "ok"), (10, 5, "ok"), (None, 10, "insufficient")],
)
def test_only_requests_that_vanished_lately_are_told(before: int | None, now: int, state: str) -> None:
    """A client that adds entries by itself makes the number fall; an earlier version noted none."""
    counts = {n: {"answered": 9} if before is None else {LOST: before} for n in range(NOW - 900, NOW)}
    at = Service(now_ms=NOW * BLOCK_MIN * 60_000, counters={LOST: now}, counts=counts)
    assert finding(evaluate_conditions(at), "unanswered").state == state


def test_an_alert_ends_soon_after_the_trouble_by_its_short_window() -> None:
    ill = service(failed=0.2)
    counts = dict(ill.counts)
    for block in range(NOW - 7, NOW):  # the last half hour was well
        counts[block] = {**counts[block], "failed": ill.counters["failed"]}
    well = Service(now_ms=ill.now_ms, counters=ill.counters, counts=counts)
    assert finding(objectives(ill, NOW, SETTINGS), "slo_error").severity == "page"
    after = finding(objectives(well, NOW, SETTINGS), "slo_error")
    assert after.severity == "ticket" or after.state == "ok"


def test_few_requests_burn_nothing() -> None:
    found = objectives(service(rate=0.01, escalated=0.9), NOW, SETTINGS)
    assert {one.state for one in found} == {"insufficient"}


def test_counters_that_began_anew_do_not_count_backwards() -> None:
    whole = service(escalated=0.1)
    emptied = Service(now_ms=whole.now_ms, counters={"answered": 50, "escalated": 5}, counts=whole.counts)
    assert emptied.since(NOW, 12, ("answered",)) == 50


def blocks(n: int, *, ood: int = 5, inside: int = 15, weight: int = 0) -> list[Block]:
    """Even traffic."""
    sums: dict[str, int] = {}
    for name, count, mean in (("ood", ood, 0.6), ("id", inside, 0.5)):
        labels = Labels(MODEL, "general", name)
        stats = {"predictions": count, "n": count, "amn.sum": round(count * mean * MILLION)}
        stats["amn.squares"] = round(count * (mean**2 + 0.02) * MILLION)
        if weight:
            stats |= {"predictions.wsum": weight * count, "w.sum": weight * count}
            stats |= {"w.squares": weight**2 * count, "amn.wsum": weight * stats["amn.sum"]}
            stats["amn.wsquares"] = weight * stats["amn.squares"]
        sums |= {labels.field(stat): amount for stat, amount in stats.items()}
    return [block_of([sums]) for _ in range(n)]


def traffic(blocks: list[Block]) -> Traffic:
    return Traffic.of(NOW - len(blocks), blocks)


def known(**more: Any) -> ModelState:
    whole = traffic(blocks(288))
    baselines = {ALL: learn(whole.series[MODEL][ALL], whole.first_block)}
    return ModelState(first_block=NOW - 600, last_block=NOW - 1, baselines=baselines, **more)


def judged_inputs(known: ModelState, seen: Traffic, now_min: int = NOW * BLOCK_MIN) -> Finding:
    return input_drift(MODEL, known, seen, now_min * 60_000, SETTINGS)


def replayed(**run: Any) -> Service:
    base = service()
    result = {"minute": NOW * BLOCK_MIN - 30, "n": 900, "golden": True, "max_change": 0.0} | run
    return Service(now_ms=base.now_ms, counters={}, canary={MODEL: result})


@pytest.mark.parametrize(
    ("change", "state", "severity"),
    [(1e-5, "ok", "page"), (0.002, "firing", "ticket"), (0.02, "firing", "page")],
)
def test_the_canary_knows_numerics_from_another_model(change: float, state: str, severity: str) -> None:
    found = canary(MODEL, replayed(max_change=change), SETTINGS)
    assert (found.state, found.severity) == (state, severity)


@pytest.mark.parametrize("run", [{"minute": NOW * BLOCK_MIN - 200}, {"n": 0}, {"golden": False}])
def test_a_canary_that_cannot_be_compared_says_nothing(run: dict[str, Any]) -> None:
    assert canary(MODEL, replayed(**run), SETTINGS).state == "insufficient"
    assert canary("other", replayed(), SETTINGS).state == "insufficient"


def test_the_canary_is_no_traffic_and_other_tiers_neither() -> None:
    plain = blocks(1)[0]
    sums = {Labels(MODEL, "general", "ood", tier).field("n"): 5 for tier in ("canary", "model", "reference")}
    assert block_of([sums]).sums == {}
    assert plain.sums[MODEL]["general"][0][1] == 5


def test_weights_count_where_they_are_stored_and_each_request_is_one_where_not() -> None:
    plain, weighted = (traffic(blocks(3, weight=w)).series[MODEL][ALL] for w in (0, 20))
    assert (plain[2] == plain[1]).all()
    assert (weighted[2] == 20 * plain[1]).all()
    assert (weighted[2] ** 2 / weighted[3] == plain[1]).all()
    assert weighted[4] / weighted[2] == pytest.approx(plain[4] / plain[2])


def test_twice_the_ood_share_is_a_ticket() -> None:
    base = known(shares={"ood": 250, "id": 750})
    assert judged_inputs(base, traffic(blocks(288))).state == "ok"
    found = judged_inputs(base, traffic(blocks(288, ood=30, inside=20)))
    assert (found.state, found.severity) == ("firing", "ticket")
    assert "60.0% of the samples are OOD" in found.summary


def test_other_cells_of_the_inputs_are_a_ticket_and_chance_is_not() -> None:
    random = np.random.default_rng(0)
    shares = random.dirichlet(np.ones(64))
    cells = {"cells": (20 * random.multinomial(9000, shares)).tolist(), "inputs": [9000]}
    base = known(shares={"ood": 250, "id": 750}, histograms=cells)
    for other, state in ((shares, "ok"), (random.dirichlet(np.ones(64)), "firing")):
        some = blocks(288)
        label = Labels(MODEL, "all", "all", "input")
        drawn = random.multinomial(3000, other)
        counts = {label.field(f"c{cell}"): 50 * int(n) for cell, n in enumerate(drawn)}
        some[100].histograms = block_of([counts | {label.field("n"): 3000}]).histograms
        assert judged_inputs(base, traffic(some)).state == state


def scored(n: int, first_bin: int, per_block: int = 200) -> list[Block]:
    """Blocks whose OOD scores lie evenly in the 20 bins from this one on."""
    some = blocks(n)
    label = Labels(MODEL, "all", "all", "input")
    counts = {label.field(f"s{first_bin + i}"): per_block // 20 for i in range(20)}
    for block in some:
        block.histograms = block_of([counts | {label.field("n"): per_block}]).histograms
    return some


def well(**more: Any) -> ModelState:
    """A model whose inputs scored .30 to .50 while the baseline was taken."""
    histograms = {"score": [0] * 30 + [2880] * 20 + [0] * 50, "inputs": [57_600]}
    return known(shares={"ood": 250, "id": 750}, histograms=histograms, **more)


def test_inputs_that_lie_where_none_lay_before_are_a_page_after_a_quarter_of_an_hour() -> None:
    for changed, state in ((0, "ok"), (2, "ok"), (3, "firing")):
        found = judged_inputs(well(), traffic(scored(288 - changed, 30) + scored(changed, 60)))
        assert (found.state, found.severity) == (state, "page" if changed == 3 else "ticket")
    assert found.values["recent_divergence_bits"] == pytest.approx(1.0)
    assert found.values["change_id"] == pytest.approx(0.0, abs=1e-6)
    assert "m_OOD +0.0000, m_ID +0.0000" in found.summary


def test_a_page_about_the_inputs_ends_when_they_are_back_and_its_day_is_no_ticket() -> None:
    base = well()
    past = scored(200, 30) + scored(88, 60)
    assert judged_inputs(base, traffic(past)).severity == "page"
    assert "input_drift|" in base.latches
    back = past + scored(3, 30)
    for minutes, state in ((0, "firing"), (20, "firing"), (35, "ok")):
        seen = Traffic.of(NOW - len(back), back)
        found = judged_inputs(base, seen, NOW * BLOCK_MIN + minutes)
        assert found.state == (state if state == "firing" else "insufficient")  # no sample since then yet
    whole_day = traffic(back + scored(60, 30))
    assert judged_inputs(base, whole_day).state != "firing"
    assert "input_drift|" not in base.latches


def test_a_few_inputs_are_no_page_and_a_longer_window_makes_them_enough() -> None:
    thin = scored(285, 30, per_block=20) + scored(3, 60, per_block=20)
    assert judged_inputs(well(), traffic(thin)).state == "ok"
    thin = scored(252, 30, per_block=20) + scored(36, 60, per_block=20)
    found = judged_inputs(well(), traffic(thin))
    assert (found.state, found.severity, found.values["recent_min"]) == ("firing", "page", 180)


def test_a_nightly_batch_that_the_baseline_knows_is_no_page() -> None:
    days = (scored(264, 30) + scored(24, 60)) * 2
    seen = traffic(days)
    wandered = wander(MODEL, seen, seen.first_block, SETTINGS)
    assert wandered > 0.5
    score = seen.histogram(MODEL, "score", seen.end_block, 576).astype(int).tolist()
    base = known(shares={"ood": 250, "id": 750}, histograms={"score": score, "inputs": [115_200]})
    assert judged_inputs(base, seen).severity == "page"
    base.latches.clear()
    base.wander_bits = wandered
    found = judged_inputs(base, seen)
    assert (found.state, found.values["recent_bar_bits"]) == ("ok", pytest.approx(wandered + 0.05, abs=1e-3))


def health(counters: Service | None = None, state: ModelState | None = None, **sizes: int) -> Finding:
    some = traffic(blocks(288, **sizes))
    judge = JudgeState(models={MODEL: state or known()})
    return monitor_health(judge, some, counters or service(shadowed=0.02), SETTINGS)


def test_monitoring_that_works_is_ok() -> None:
    assert health().state == "ok"


@pytest.mark.parametrize("share", [0.0001, 0.2])
def test_a_sampling_rate_outside_of_the_card_is_a_ticket(share: float) -> None:
    found = health(service(shadowed=share))
    assert (found.state, found.severity) == ("firing", "ticket")
    assert "are sampled" in found.summary


def test_a_shadow_stream_that_lags_is_a_ticket() -> None:
    base = service(shadowed=0.02)
    waiting = {"shadow": StreamFacts(entries=1, leased=0, payload_bytes=None, oldest_age_ms=90_000)}
    late = replace(base, streams=waiting)
    assert "90 s" in health(late).summary


def test_truths_that_do_not_come_are_a_ticket() -> None:
    some = blocks(288)
    for block in some:
        for rows in block.sums[MODEL]["general"]:
            rows[0] *= 2
    found = monitor_health(JudgeState(models={MODEL: known()}), traffic(some), service(), SETTINGS)
    assert "truths came for 50%" in found.summary


def test_a_day_in_which_nothing_can_be_judged_is_a_ticket_and_a_new_model_has_time_to_learn() -> None:
    minute_ms = BLOCK_MIN * 60_000
    silent = known(silent_since_ms=(NOW - 300) * minute_ms)
    assert "too little data" in health(state=silent).summary
    silent.first_block = NOW - 300
    assert health(state=silent).state == "ok"


def test_nothing_sampled_is_neither_ok_nor_an_alarm() -> None:
    found = monitor_health(JudgeState(), Traffic.of(NOW, []), service(), SETTINGS)
    assert found.state == "insufficient"
