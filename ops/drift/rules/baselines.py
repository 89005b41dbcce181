"""The moments when a model's baselines are taken, taken again, and frozen."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ops.clock import BLOCKS_PER_DAY
from ops.drift.measures.baseline import learn
from ops.drift.measures.blocks import ALL, HISTOGRAMS, Traffic
from ops.drift.measures.detector import Detector
from ops.drift.measures.statistics import means
from ops.drift.rules.inputs import wander
from ops.drift.settings import JudgeSettings
from ops.drift.state import ModelState, Order

_HOUR = BLOCKS_PER_DAY // 24


def learn_when_due(
    known: ModelState, model: str, traffic: Traffic, now_ms: int, settings: JudgeSettings
) -> list[dict[str, Any]]:
    """Takes the baselines when it is time, and returns the entry for the audit.

    The first time is `learn_min_h` after the model's first traffic, when there were enough requests.
    Each day after that they are taken again over all days so far, up to `learn_max_h`, so that they
    know the week; then they are frozen. While any rule fires, nothing is learned: what is ill is
    never taken for the measure of health.
    """
    end = traffic.end_block
    age = end - known.first_block
    due = end - known.learned_block >= BLOCKS_PER_DAY
    if known.frozen or known.latches or age < settings.learn_min_h * _HOUR or not due:
        return []
    first = max(known.first_block, traffic.first_block, end - settings.learn_max_h * _HOUR)
    found = {}
    for lane in sorted(traffic.series.get(model, {})):  # ALL, the empty name, comes first
        window = traffic.window(model, lane, end, end - first)
        if window is None or window.minutes < settings.minutes_min:
            continue  # a few busy hours are not a day
        if means(window.sums).n.min() >= settings.learn_requests_min:
            found[lane] = learn(window.sums, first, window.lanes)
    if ALL not in found:
        return []
    known.baselines = found
    counts = {name: traffic.histogram(model, name, end, end - first) for name in HISTOGRAMS}
    known.histograms = {name: some.astype(int).tolist() for name, some in counts.items() if some.any()}
    known.wander_bits = round(wander(model, traffic, first, settings), 4)
    known.shares = traffic.shares(model, end, end - first)
    known.learned_block = end
    known.frozen = age >= settings.learn_max_h * _HOUR
    # A detector goes on with the evidence it has: that was gathered against the baseline of its day.
    known.detectors = {lane: known.detectors.get(lane) or Detector.fresh(end) for lane in found}
    days, delta = round(found[ALL].blocks / BLOCKS_PER_DAY, 2), round(found[ALL].delta, 5)
    what = "frozen" if known.frozen else "learned"
    return [{"what": what, "model": model, "at_ms": now_ms, "who": "judge", "days": days, "delta": delta}]


def rebaseline(models: dict[str, ModelState], order: Order, end_block: int, now_ms: int) -> dict[str, Any]:
    """Forgets a model's baseline; the last hours that the order names are the new one's beginning."""
    old = models.get(order.model)
    if old is None:
        because = "the judge knows no such model"
        return {"what": "rebaseline_refused", **asdict(order), "because": because}
    first = max(old.first_block, end_block - order.hours * _HOUR)
    models[order.model] = ModelState(first_block=first, last_block=old.last_block, declared_ms=now_ms)
    delta = round(old.baselines[ALL].delta, 5) if ALL in old.baselines else None
    return {"what": "rebaseline", **asdict(order), "delta_before": delta}
