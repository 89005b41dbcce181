"""Series of the report's plots."""

from __future__ import annotations

import numpy as np

from ops.clock import BLOCKS_PER_DAY
from ops.drift.measures.blocks import Block, Traffic, block_of
from ops.drift.measures.statistics import W, X
from ops.drift.measures.stored import dumps
from ops.drift.show.plots import HOUR, SHOWN_HOURS, week_before
from workers.shadow.scores import MILLION, Labels


def test_the_same_hours_a_week_ago_are_known_for_as_long_as_blocks_are_kept() -> None:
    blocks = 8 * BLOCKS_PER_DAY
    sums = np.zeros((6, 2, blocks))
    sums[W] = 2.0
    sums[X, 0] = 2.0 * np.arange(blocks)  # the mean of a block is its number
    sums[X, 1] = 2.0
    found = week_before(sums)
    assert found.shape == (3, SHOWN_HOURS)
    assert np.isnan(found[:, :24]).all()
    last_hour = blocks - 7 * BLOCKS_PER_DAY - HOUR + np.arange(HOUR)
    assert found[:, -1].tolist() == [last_hour.mean() - 1.0, last_hour.mean(), 1.0]


def test_a_week_ago_is_not_known_in_the_first_week() -> None:
    assert np.isnan(week_before(np.ones((6, 2, 3 * BLOCKS_PER_DAY)))).all()


def test_what_stands_in_for_the_truth_is_kept_apart_from_it() -> None:
    minutes = []
    for mean in (0.2, 0.4):
        sums = {}
        for tier, cosine in (("true", 0.9), ("model", mean), ("reference", 0.1)):
            label = Labels("m", "a", "ood", tier)
            stats = {"n": 1, "w.sum": 20, "w.squares": 400, "amn.wsum": round(20 * cosine * MILLION)}
            sums |= {label.field(stat): amount for stat, amount in stats.items()}
        minutes.append(sums)
    block = Block.from_json(dumps(block_of(minutes)))
    traffic = Traffic.of(0, [block])
    found = {(one.target, one.slice): (one.n, round(one.mean, 6)) for one in traffic.stand_ins("m", 1, 288)}
    assert found == {("model", "ood"): (2, 0.3), ("reference", "ood"): (2, 0.1)}
    judged = traffic.series["m"]["a"]
    assert judged[X, 0, 0] / judged[W, 0, 0] == 0.9


def test_a_block_of_an_earlier_version_has_no_stand_ins() -> None:
    stored = Block.from_json('{"sums":{},"minutes":{"m":5},"histograms":{},"shares":{}}')
    assert Traffic.of(0, [stored]).stand_ins("m", 1, 1) == []
