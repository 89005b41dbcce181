"""Histograms of the stages: percentiles, differences, sums, and what strangers may have written."""

from __future__ import annotations

import fakeredis
import numpy as np
import pytest

from ops import stages
from ops.stages import parse
from producer.keys import Keys
from producer.stages import BOUNDS_US, BUCKETS, StageCounts, StageHistogram, StageLabels, add, merged

LABELS = StageLabels("model", "amn", "normal", "answered")


def fields(counts: StageCounts) -> dict[bytes, bytes]:
    return {":".join((*labels, bucket)).encode(): b"%d" % n for labels, bucket, n in counts.growth()}


def histogram(times_us: list[float]) -> StageHistogram:
    counts = StageCounts()
    for us in times_us:
        add(counts.row(LABELS), us)
    (found,) = parse([fields(counts)])
    return found


def test_percentiles_lie_in_the_bucket_of_the_exact_ones() -> None:
    times_us = np.random.default_rng(3).lognormal(6.5, 0.8, 5000)
    found = histogram(times_us.tolist())
    assert found.count == 5000
    assert found.mean_ms == pytest.approx(times_us.astype(int).mean() / 1000)
    for share in (0.5, 0.95, 0.99):
        exact_us = float(np.quantile(times_us, share))
        least, most = (BOUNDS_US[np.searchsorted(BOUNDS_US, exact_us) + side] for side in (-1, 0))
        assert least <= found.quantile_ms(share) * 1000 <= most
        assert found.quantile_ms(share) == pytest.approx(exact_us / 1000, rel=0.15)


def test_the_share_within_the_objective_is_exact() -> None:
    assert histogram([1200, 1200, 1201, 5]).within(1200) == 0.75


def test_a_hash_that_is_far_too_long_to_be_ours_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    client, keys = fakeredis.FakeRedis(), Keys("main")
    monkeypatch.setattr(stages, "_FIELDS_MAX", 3)
    strange, ours = ({f"model:amn:normal:{bucket}": 1 for bucket in range(count)} for count in (4, 3))
    client.hset(keys.stages, mapping=strange)
    client.hset(keys.stages_minute(1), mapping=strange)
    client.hset(keys.stages_minute(2), mapping=ours)
    client.set(keys.stages_minute(3), "no hash")
    assert stages.read_minutes(client, keys, 1, 4).keys() == {2}
    assert stages.read_total(client, keys) == []
    client.hdel(keys.stages, "model:amn:normal:0")
    assert [one.count for one in stages.read_total(client, keys)] == [3]


@pytest.mark.parametrize(("us", "bucket"), [(-5, 0), (20, 0), (20.9, 0), (21, 1), (6e7, 24), (6.1e7, 25)])
def test_a_time_lies_in_the_first_bucket_whose_bound_it_does_not_exceed(us: float, bucket: int) -> None:
    assert histogram([us]).counts.index(1) == bucket


def test_a_client_whose_clock_is_a_century_off_spoils_no_sum() -> None:
    assert histogram([-1e15, 1e15]).sum_us == 3_600_000_000 - 1_000


def test_nothing_was_counted_is_no_number() -> None:
    empty = StageHistogram(stage="model")
    assert (empty.mean_ms, empty.quantile_ms(0.5), empty.within(1200)) == (None, None, None)


def test_growth_is_taken_once() -> None:
    counts = StageCounts()
    for _ in range(3):
        add(counts.row(LABELS), 100)
    assert [(bucket, n) for _, bucket, n in counts.growth()] == [("2", 3), ("sum", 300)]
    assert counts.growth() == []
    add(counts.row(LABELS), 100)
    assert [(bucket, n) for _, bucket, n in counts.growth()] == [("2", 1), ("sum", 100)]


def test_the_difference_of_two_readings_is_what_came_between_them() -> None:
    before, now = histogram([100, 900]), histogram([100, 900, 3000])
    assert now.since(before).counts.index(1) == BOUNDS_US.index(5000)
    assert now.since(before).sum_us == 3000
    assert now.since(None) == now
    assert before.since(now) == before  # the server was emptied


def test_series_are_added_up_by_the_labels_that_are_asked_for() -> None:
    one = StageHistogram(stage="model", kind="amn", level="high", counts=(1,) * BUCKETS, sum_us=5)
    other = StageHistogram(stage="model", kind="amn", level="low", counts=(2,) * BUCKETS, sum_us=6)
    (found,) = merged([one, other], "stage", "kind")
    assert (found.kind, found.level, found.counts, found.sum_us) == ("amn", "", (3,) * BUCKETS, 11)


@pytest.mark.parametrize(
    "field",
    [b"\xff", b"", b"model", b"model:amn:normal:answered:26", b"model:amn:normal:answered:-1", b"a:b:c:d:1"],
)
def test_what_is_not_ours_is_left_out(field: bytes) -> None:
    assert parse([{field: b"1", b"model:amn:normal:answered:3": b"x"}]) == []
