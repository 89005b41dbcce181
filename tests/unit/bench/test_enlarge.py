"""A set of vectors made larger, to measure at a size that no data set at hand has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from click.testing import CliRunner

from bench.enlarge import command, enlarge

SAMPLE = Path(__file__).parents[3] / "artifacts" / "sample" / "sequences.npz"


def test_an_enlarged_set_begins_with_the_real_one_and_is_the_same_each_time(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(6000, 768)).astype(np.float32)
    real = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    article = np.repeat(np.arange(60), 100)
    for name in ("a.npy", "b.npy"):
        enlarge(real, article, tmp_path / name, count=9000, seed=4)
    made = np.load(tmp_path / "a.npy").astype(np.float32)
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), made.astype(np.float16))
    np.testing.assert_allclose(made[:6000], real, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-3)


def test_a_set_is_not_made_smaller(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, [str(SAMPLE), "--out", str(tmp_path / "c.npy"), "--count", "10"])
    assert done.exit_code == 2
    assert "ask for more" in done.output
    assert list(tmp_path.iterdir()) == []
