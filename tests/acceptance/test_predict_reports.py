"""A file that reports its truths counts in the drift sums of a real service, once, and only if asked to."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import redis
from command import SAMPLE, Amn, address
from pyarrow import parquet
from waiting import wait_until

from producer.keys import Keys
from workers.shadow.scores import Labels

pytestmark = pytest.mark.timeout(300)
LENGTH, ROWS, KEYS = 30, 9_000, Keys("main")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return written(tmp_path / "in.parquet", noise=0.0)


def written(path: Path, noise: float) -> Path:
    """Documents of the shipped sample, half of them of a domain out of distribution; noise is drift."""
    vectors, number = np.load(SAMPLE)["vectors"].astype("f4"), np.arange(ROWS)
    vectors = vectors[number % len(vectors)]
    vectors += noise * np.random.default_rng(0).normal(size=vectors.shape).astype("f4") / np.sqrt(768)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    table = {
        "doc_id": number // LENGTH,
        "position": number % LENGTH,
        "domain": np.where(number // LENGTH % 2, "news", "anarchism"),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 768),
    }
    parquet.write_table(pa.table(table), path, row_group_size=3_000)
    return path


def sums(service: Amn) -> Counter[tuple[str, str]]:
    """What the minutes hold of files with their truths, by slice and statistic."""
    found: Counter[tuple[str, str]] = Counter()
    with redis.Redis.from_url(address(service.folder)) as client:
        for key in client.scan_iter(f"{KEYS.drift_minute_prefix}*"):
            for field, amount in client.hgetall(key).items():  # type: ignore[union-attr]
                labels, stat = Labels.parse(field.decode())
                if (labels.lane, labels.target) == ("files", "true"):
                    found[labels.slice, stat] += int(amount)
    return found


def settled(service: Amn, before: Counter[tuple[str, str]], count: int) -> Counter[tuple[str, str]]:
    """What so many more pairs have added."""

    def added() -> Counter[tuple[str, str]]:
        return sums(service) - before

    wait_until(lambda: added()["id", "n"] + added()["ood", "n"] >= count)
    return added()


def counters(service: Amn) -> dict[str, int]:
    with redis.Redis.from_url(address(service.folder)) as client:
        stored = client.hgetall(KEYS.stats)
        return {name.decode(): int(value) for name, value in stored.items()}  # type: ignore[union-attr]


def test_a_file_is_judged_once_and_only_where_that_is_asked_for(
    service: Amn, tmp_path: Path, source: Path
) -> None:
    before, counted = sums(service), counters(service)
    assert service("predict", source, "--out", tmp_path / "quiet").code == 0
    time.sleep(1.0)
    assert sums(service) == before
    ended = service("predict", source, "--out", tmp_path / "out", "--report-truth", "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)["truths"]
    assert told["lost"] == {}
    assert told["reported"] == told["sampled"]
    assert 40 < told["sampled"] < 120  # 1 % of 7,500 rows with a truth
    healthy = settled(service, before, told["reported"])
    assert healthy["id", "n"] > 10
    assert healthy["ood", "n"] > 10
    assert healthy["id", "w.sum"] == 100 * healthy["id", "n"]
    assert ("id", "slow") not in healthy
    now = counters(service)
    sampled = now["shadowed"] - counted.get("shadowed", 0)
    assert now["sampleable"] - counted.get("sampleable", 0) == 100 * sampled == 100 * told["sampled"]
    again = service("predict", source, "--out", tmp_path / "again", "--report-truth", "--json")
    assert again.code == 0, again.err
    drifted = written(tmp_path / "drifted.parquet", noise=1.0)
    ended = service("predict", drifted, "--out", tmp_path / "drifted", "--report-truth", "--json")
    assert ended.code == 0, ended.err
    less = settled(service, before + healthy, json.loads(ended.out)["truths"]["reported"])
    assert sum(less[name, "n"] for name in ("id", "ood")) == json.loads(ended.out)["truths"]["reported"]
    for slice_ in ("id", "ood"):
        means = [found[slice_, "amn.sum"] / found[slice_, "n"] / 1e6 for found in (healthy, less)]
        assert means[1] < means[0] - 0.1


def test_what_cannot_be_reported_is_refused_before_any_work(
    service: Amn, tmp_path: Path, source: Path
) -> None:
    direct = service("predict", source, "--out", tmp_path / "out", "--report-truth", "--direct")
    assert direct.code == 2
    assert "--report-truth needs a service" in direct.err
    np.save(tmp_path / "contexts.npy", np.zeros((3, 5, 768), "f4"))
    contexts = service("predict", tmp_path / "contexts.npy", "--out", tmp_path / "out", "--report-truth")
    assert contexts.code == 1
    assert "--report-truth needs documents" in contexts.err
    assert not (tmp_path / "out").exists()
