"""The sample's windows: what `amn run` sends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ops.errors import FileRefused
from ops.sample import HIGH_STAKES, Sample

LENGTHS = (9, 5, 30, 6, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((sum(LENGTHS), 768)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    file = tmp_path / "sequences.npz"
    np.savez(
        file,
        vectors=vectors.astype(np.float16),
        article=np.repeat(np.arange(len(LENGTHS), dtype=np.int32), LENGTHS),
        article_name=np.array([f"page {i}" for i in range(len(LENGTHS))]),
        article_domain=np.array(["git", "git", "anarchism", "python", "python"]),
        article_slice=np.array(["id", "id", "ood", "id", "id"]),
    )
    return file


def test_windows_never_cross_an_article(path: Path) -> None:
    sample = Sample.load(path)
    owner = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    assert len(sample) == (9 - 5) + 0 + (30 - 5) + (6 - 5) + 0
    for start, article in zip(sample.start, sample.article, strict=True):
        assert set(owner[start : start + 6]) == {article}


def test_each_article_is_sent_in_reading_order(path: Path) -> None:
    sample = Sample.load(path)
    for article in set(sample.article):
        positions = sample.position[sample.article == article]
        assert positions.tolist() == list(range(4, 4 + len(positions)))


def test_a_short_run_sees_every_article_that_has_windows(path: Path) -> None:
    sample = Sample.load(path)
    middle = set(sample.article[: len(sample) // 2 + 1])
    assert middle == set(sample.article)


def test_the_next_request_of_a_sequence_carries_the_truth_of_this_one(path: Path) -> None:
    sample = Sample.load(path)
    by_place = {(o.sequence, o.position): i for i in range(60) for o in [sample.options(i, "r")]}
    assert len(by_place) == 60  # no place is sent twice, also when the sample starts again
    for (sequence, position), i in by_place.items():
        following = by_place.get((sequence, position + 1))
        if following is not None:
            assert (sample.context(following)[-1] == sample.truth(i)).all()


def test_two_percent_go_to_high_stakes_lanes_and_one_percent_is_long(path: Path) -> None:
    sample = Sample.load(path)
    options = [sample.options(i, "r") for i in range(1000)]
    lanes = [o.lane for o in options if o.lane != "general"]
    assert len(lanes) == 20
    assert set(lanes) == set(HIGH_STAKES)
    assert sum(o.tokens > 384 for o in options) == 10
    assert all(o.provisional for o in options)


@pytest.mark.parametrize("count", [1, 7, 30, 31, 95])
def test_baselines_are_the_means_over_exactly_what_was_sent(path: Path, count: int) -> None:
    sample = Sample.load(path)
    means, lasts = [], []
    for i in range(count):
        context, truth = sample.context(i), sample.truth(i)
        mean = context.mean(axis=0)
        means.append(mean @ truth / np.linalg.norm(mean))
        lasts.append(context[-1] @ truth)
    assert sample.baselines(count) == pytest.approx((np.mean(means), np.mean(lasts)), abs=1e-5)


def test_a_file_that_is_no_sample_is_refused_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "other.npz"
    np.savez(file, rows=np.zeros(3))
    with pytest.raises(FileRefused, match=r"other\.npz"):
        Sample.load(file)
    with pytest.raises(FileRefused, match=r"missing\.npz"):
        Sample.load(tmp_path / "missing.npz")
