"""Paired replays: the same items through two models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ops.app import app
from ops.drift.lab.paired import Sequences, Vectors, cosines, differences
from ops.errors import FileRefused


class Mean:
    """Predicts the context's mean, `worse` of it mixed with noise."""

    def __init__(self, worse: float = 0.0) -> None:
        self._worse, self._random = worse, np.random.default_rng(0)

    def predict(self, contexts: Vectors) -> Vectors:
        mean = contexts.mean(axis=1)
        mean = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        noise = self._random.normal(size=mean.shape) / 768**0.5
        mixed = mean + self._worse * noise
        return np.asarray(mixed / np.linalg.norm(mixed, axis=1, keepdims=True), dtype=np.float32)


def saved(path: Path, n: int = 200) -> Path:
    random = np.random.default_rng(1)
    topic = random.normal(size=(n, 1, 768))
    rows = topic + random.normal(size=(n, 6, 768))
    lanes = np.where(np.arange(n) % 2, "a", "b")
    np.savez(path, contexts=rows[:, :5].astype("f2"), truths=rows[:, 5].astype("f2"), lanes=lanes)
    return path


def test_a_small_difference_shows_because_the_items_are_the_same(tmp_path: Path) -> None:
    exemplars = Sequences.load(saved(tmp_path / "e.npz"))
    one, other = (cosines(Mean(worse), exemplars) for worse in (0.0, 0.2))
    everything, *by_lane = differences(one, other, exemplars)
    assert everything["n"] == 200
    assert everything["difference"] < -0.005
    assert everything["high_99"] < 0
    # As two independent samples, the same difference would be lost in the noise.
    assert 2.576 * np.sqrt((one.var() + other.var()) / 200) > -everything["difference"] / 4
    assert [row["group"] for row in by_lane] == ["all / a", "all / b"]
    assert sum(row["n"] for row in by_lane) == 200


def test_a_model_against_itself_does_not_differ(tmp_path: Path) -> None:
    exemplars = Sequences.load(saved(tmp_path / "e.npz"))
    same = cosines(Mean(), exemplars)
    found = differences(same, same, exemplars)[0]
    assert (found["low_99"], found["high_99"]) == (0.0, 0.0)


def test_too_few_pairs_have_no_interval(tmp_path: Path) -> None:
    exemplars = Sequences.load(saved(tmp_path / "e.npz", n=3))
    same = cosines(Mean(), exemplars)
    assert np.isnan(differences(same, same, exemplars)[0]["low_99"])


@pytest.mark.parametrize("what", ["missing", "text", "shape"])
def test_a_file_that_holds_no_exemplars_is_refused_with_its_name(tmp_path: Path, what: str) -> None:
    path = tmp_path / "e.npz"
    if what == "text":
        path.write_text("no")
    elif what == "shape":
        np.savez(path, contexts=np.ones((2, 4, 768), "f4"), truths=np.ones((2, 768), "f4"))
    with pytest.raises(FileRefused, match=r"e\.npz"):
        Sequences.load(path)


def test_the_command_compares_the_shipped_models_on_the_shipped_sample() -> None:
    shown = CliRunner().invoke(app, ["drift", "replay", "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.output)
    assert found["groups"][0]["n"] == 2200
    assert found["groups"][0]["low_99"] < found["groups"][0]["difference"] < found["groups"][0]["high_99"]
    assert {group["group"].split(" / ")[0] for group in found["groups"][1:]} == {"ood", "id"}
