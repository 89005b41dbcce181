"""The moments when a model's baseline is taken, taken again, and frozen."""

from __future__ import annotations

from ops.clock import BLOCKS_PER_DAY
from ops.drift.measures.baseline import Reference, learn
from ops.drift.measures.blocks import ALL, Traffic
from ops.drift.measures.comparison import Window
from ops.drift.measures.detector import Detector
from ops.drift.measures.statistics import means
from ops.drift.rules.inputs import wander
from ops.drift.settings import JudgeSettings
from ops.drift.state import ModelState
from workers.shadow.scores import BINS

_BLOCKS_PER_HOUR = BLOCKS_PER_DAY // 24
#: Histograms that are kept with a baseline, and their bins.
HISTOGRAMS = {"cosine.ood": BINS, "cosine.id": BINS, "cells": 256, "score": 100, "inputs": 1}


def update(state: ModelState, model: str, traffic: Traffic, settings: JudgeSettings) -> bool:
    """Takes the baselines when it is time; returns whether it did.

    The first time is `learn_min_h` after the model's first traffic, when there were enough requests.
    Each day after that they are taken again over all days so far, up to `learn_max_h`, so that they
    know the week; then they are frozen. While any rule fires, nothing is learned: what is ill is
    never taken for the measure of health.
    """
    end = traffic.end_block
    age = end - state.first_block
    due = end - state.learned_block >= BLOCKS_PER_DAY
    if state.frozen or state.latches or age < settings.learn_min_h * _BLOCKS_PER_HOUR or not due:
        return False
    first = max(state.first_block, traffic.first_block, end - settings.learn_max_h * _BLOCKS_PER_HOUR)
    found = _baselines(model, traffic, first, settings)
    if ALL not in found:
        return False
    state.baselines = found
    histograms = {
        name: traffic.histogram(model, name, end, end - first, bins) for name, bins in HISTOGRAMS.items()
    }
    state.histograms = {n: counts.astype(int).tolist() for n, counts in histograms.items() if counts.any()}
    state.wander_bits = round(wander(model, traffic, first, settings), 4)
    state.shares = traffic.shares(model, end, end - first)
    state.learned_block = end
    state.frozen = age >= settings.learn_max_h * _BLOCKS_PER_HOUR
    # A detector goes on with the evidence it has: that was gathered against the baseline of its day.
    state.detectors = {lane: state.detectors.get(lane) or Detector.fresh(end) for lane in found}
    return True


def _baselines(model: str, traffic: Traffic, first: int, settings: JudgeSettings) -> dict[str, Reference]:
    """By lane, where there were enough requests; nothing when all lanes together had too few."""
    found: dict[str, Reference] = {}
    for lane in sorted(traffic.series.get(model, {})):  # ALL, the empty name, comes first
        window = traffic.window(model, lane, traffic.end_block, traffic.end_block - first)
        if window is None or not _enough(window, settings):
            if lane == ALL:
                return {}
            continue
        found[lane] = learn(window.sums, first, window.lanes)
    return found


def _enough(window: Window, settings: JudgeSettings) -> bool:
    if window.minutes < settings.minutes_min:
        return False  # a few busy hours are not a day
    return bool(means(window.sums).n.min() >= settings.learn_requests_min)
