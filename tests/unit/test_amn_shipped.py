"""What lies in artifacts/: whole, within its budget, and better than a mean of the context."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amn.checkpoint import load
from amn.folded import fold
from amn.metrics import cosine, estimate

ARTIFACTS = Path(__file__).parents[2] / "artifacts"
LVM = ARTIFACTS / "lvm"


@pytest.fixture(scope="module")
def sample():
    """Windows (n, 6, 768) of the shipped sample, their article, and their slice."""
    held = np.load(ARTIFACTS / "sample" / "sequences.npz", allow_pickle=False)
    vectors = held["vectors"].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    starts = np.flatnonzero(held["article"][:-5] == held["article"][5:])
    articles = held["article"][starts]
    return vectors[starts[:, None] + np.arange(6)], articles, held["article_slice"][articles]


def test_the_production_model_is_an_amn_of_the_specified_size():
    manifest = load(LVM / "production_model").manifest
    assert manifest.name == "amn"
    assert manifest.parameters == 1_472_768
    assert manifest.metrics["unseen"]["cosine"]["n"] == 9_233


def test_the_production_model_beats_the_context_mean_on_both_slices_of_the_sample(sample):
    windows, articles, slices = sample
    predicted = fold(load(LVM / "production_model").model)(np.ascontiguousarray(windows[:, :5])).numpy()
    mean = windows[:, :5].mean(1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    gain = cosine(predicted, windows[:, 5]) - cosine(mean, windows[:, 5])
    for name in ("id", "ood"):
        found = estimate(gain[slices == name], articles[slices == name])
        assert found.n > 800
        assert found.low > 0, name


def test_the_fallback_loads_from_sixteen_bit_weights():
    manifest = load(LVM / "fallback_accuracy").manifest
    assert manifest.name == "gru"
    assert manifest.parameters == 7_095_552
    assert manifest.storage == "float16"


def test_models_and_sample_fit_the_budget():
    def size(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    assert size((LVM / "production_model").resolve()) < 6_500_000
    assert size((LVM / "fallback_accuracy").resolve()) < 14_700_000
    assert size(ARTIFACTS / "sample") < 4_000_000
    assert size(ARTIFACTS) < 40 * 1024 * 1024
