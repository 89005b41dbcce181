"""Exemplars on a server: the worst and the random ones, within number and bytes, kept for alerts."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ops.clock import server_now_ms
from ops.drift.lab.paired import Sequences
from producer.keys import Keys
from workers.shadow.exemplars import KEPT, RANDOM, WORST, Exemplar, Exemplars, as_arrays, of_pair
from workers.shadow.queue import key_hash
from workers.shadow.scores import Arrival, Labels, prediction_half, truth_half

KEYS = Keys()
DRAW = np.random.default_rng(0)


def units(*shape: int) -> np.ndarray:
    rows = DRAW.standard_normal((*shape, 768)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def pair(n: int, minute: int, lane: str = "general") -> list[Exemplar]:
    """Request n of a minute, with a cosine that n gives."""
    context, truth, other = units(5), units(), units()
    amn = truth * (n % 97) + other * 20
    amn /= np.linalg.norm(amn)
    labels = Labels("amn@1", lane, "ood")
    half = prediction_half(
        f"{minute * 60_000}-{n}".encode(), labels, context, amn, context[0], Arrival(weight=30, ood=0.7)
    )
    return of_pair(f"k{n}", key_hash(f"k{n}"), half, truth_half(truth))


@pytest.fixture
def minute(server: Any) -> int:
    return server_now_ms(server.admin) // 60_000


def test_the_worst_and_the_random_ones_stay_in_any_order_and_however_often(server: Any, minute: int) -> None:
    offered = [one for n in range(60) for one in pair(n, minute)]
    seen = []
    for seed in range(3):
        server.admin.flushall()
        again = offered + offered[:30]
        random.Random(seed).shuffle(again)
        exemplars = Exemplars(server.admin, KEYS)
        for some in itertools.batched(again, 7) if hasattr(itertools, "batched") else [again]:
            exemplars.offer(some)
        seen.append(exemplars.read(minute // 60, minute // 60))
    assert seen[0] == seen[1] == seen[2]
    for kind in (WORST, RANDOM):
        kept = {one.key for one in seen[0] if one.kind == kind}
        best = sorted((one for one in offered if one.kind == kind), key=lambda one: one.rank)[:KEPT]
        assert kept == {one.key for one in best}
    cosines = sorted(one.cosine for one in offered if one.kind == WORST)
    assert max(one.cosine for one in seen[0] if one.kind == WORST) == cosines[KEPT - 1]


def test_a_record_is_read_back_whole(server: Any, minute: int) -> None:
    (worst, _) = offered = pair(3, minute)
    exemplars = Exemplars(server.admin, KEYS)
    exemplars.offer(offered)
    found = exemplars.read(minute // 60, minute // 60, lane="general", slice_="ood")
    assert found == sorted(offered, key=lambda one: one.kind)
    assert found[0].rows.shape == (8, 768)
    np.testing.assert_array_equal(found[0].truth, worst.truth)
    assert found[0].cosine == pytest.approx(
        float(worst.prediction.astype(float) @ worst.truth.astype(float)), abs=1e-3
    )
    assert found[0].ood == 0.7
    assert exemplars.read(minute // 60, minute // 60, lane="narrative") == []


def test_what_has_no_chance_is_not_sent(server: Any, minute: int) -> None:
    exemplars = Exemplars(server.admin, KEYS)
    exemplars.offer([one for n in range(40) for one in pair(n, minute)])
    assert exemplars.offer([one for one in pair(96, minute) if one.kind == WORST]) == 0
    assert exemplars.offer([one for one in pair(97, minute) if one.kind == WORST]) == 1  # a cosine near 0


def test_everything_expires_and_hours_make_room_for_later_ones(server: Any, minute: int) -> None:
    size = len(pair(0, minute)[0].pack())
    exemplars = Exemplars(server.admin, KEYS, bytes_max=30 * size)
    for hours in (2, 1, 0):
        exemplars.offer([one for n in range(10) for one in pair(n, minute - 60 * hours)])
    assert exemplars.read(minute // 60 - 2, minute // 60 - 2) == []
    assert len(exemplars.read(minute // 60, minute // 60)) == 20
    stored = {int(h): int(n) for h, n in server.admin.hgetall(KEYS.drift_prefix + "exemplars:bytes").items()}
    for hour, count in stored.items():
        assert count == sum(map(len, server.admin.hvals(f"{KEYS.drift_prefix}exemplars:{hour}")))
    assert sum(stored.values()) <= 30 * size
    names = server.admin.keys(KEYS.drift_prefix + "*")
    assert len(names) == 1 + len(stored) * 3
    assert all(0 < server.admin.ttl(name) <= 48 * 3600 for name in names)


def test_what_is_older_than_the_retention_is_not_kept(server: Any, minute: int) -> None:
    exemplars = Exemplars(server.admin, KEYS)
    exemplars.offer(pair(0, minute - 49 * 60))
    assert server.admin.keys(KEYS.drift_prefix + "exemplars:4*") == []


def test_copies_for_an_alert_outlive_the_hours_until_it_begins_again(server: Any, minute: int) -> None:
    exemplars = Exemplars(server.admin, KEYS)
    offered = [one for n in range(150) for one in pair(n, minute)]
    assert exemplars.freeze("a1", offered, 1) == 200
    assert exemplars.freeze("a1", [], 2) == 200
    frozen = exemplars.frozen("a1")
    assert sum(one.kind == WORST for one in frozen) == 100
    assert frozen[0].cosine == min(one.cosine for one in offered)
    assert 13 * 86_400 < server.admin.ttl(KEYS.drift_prefix + "frozen:a1") <= 14 * 86_400
    assert exemplars.freeze("a1", offered[:4], 2) == 4
    for n in range(60):
        exemplars.freeze(f"b{n}", offered[:2], 10 + n)
    assert exemplars.frozen("a1") == []
    assert len(exemplars.frozen("b59")) == 2
    assert server.admin.zcard(KEYS.drift_prefix + "frozen") == 50
    assert exemplars.freeze("nothing", [], 1) == 0


def test_they_can_be_replayed(server: Any, minute: int, tmp_path: Path) -> None:
    offered = [one for n in range(5) for one in pair(n, minute)]
    np.savez(tmp_path / "e.npz", **as_arrays(offered))
    read = Sequences.load(tmp_path / "e.npz")
    assert read.contexts.shape == (5, 5, 768)
    assert set(read.slices) == {"ood"}
