"""What lies in artifacts/: whole, within its budget, and better than a mean of the context."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from amn.errors import CheckpointError
from amn.evaluation.metrics import cosine, estimate
from amn.kernel import bindings as kernel
from amn.model import folded_bounded
from amn.model.checkpoint import load
from amn.model.folded import fold
from amn.predictor import Predictor

ARTIFACTS = Path(__file__).parents[3] / "artifacts"
LVM = ARTIFACTS / "lvm"
LINKS = ("production_model", "fallback_accuracy")


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


def test_the_fallback_loads_from_sixteen_bit_weights_and_stands_on_the_production_model():
    manifest = load(LVM / "fallback_accuracy").manifest
    assert manifest.name == "retrieval"
    assert manifest.parameters == 1_816_844
    assert manifest.storage == "float16"
    assert manifest.training["first_stage"] == load(LVM / "production_model").manifest.model_id


def test_the_fallback_beats_the_production_model_on_familiar_text_and_equals_it_elsewhere(sample):
    windows, articles, slices = sample
    contexts = np.ascontiguousarray(windows[:, :5])
    fast, slow = (fold(load(LVM / name).model)(contexts).numpy() for name in LINKS)
    gain = cosine(slow, windows[:, 5]) - cosine(fast, windows[:, 5])
    inside = slices == "id"
    assert estimate(gain[inside], articles[inside]).mean > 0
    assert np.abs(gain[~inside]).mean() < 1e-4


def test_models_and_sample_fit_the_budget():
    def size(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    assert size((LVM / "production_model").resolve()) < 6_500_000
    assert size((LVM / "fallback_accuracy").resolve()) < 21_500_000
    assert size(ARTIFACTS / "sample") < 4_000_000
    assert size(ARTIFACTS) < 40 * 1024 * 1024


@pytest.mark.parametrize("name", LINKS)
def test_a_fast_form_that_answers_otherwise_than_its_network_is_not_served(name, monkeypatch):
    Predictor.open(LVM / name)
    # Only contexts that the model trusts use the last layer: the check must have one.
    monkeypatch.setattr(kernel, "panels", lambda weights, exact=kernel.panels: exact(weights * 1.001))
    monkeypatch.setattr(folded_bounded, "unit", lambda rows: 1.001 * rows)
    with pytest.raises(CheckpointError, match="answers 1 context"):
        Predictor.open(LVM / name)


def test_a_bank_of_another_encoder_is_refused_by_name(tmp_path):
    bank = tmp_path / "bank"
    shutil.copytree(LVM / "reference_bank", bank)
    manifest = json.loads((bank / "manifest.json").read_text())
    (bank / "manifest.json").write_text(json.dumps(manifest | {"encoder_id": "another/mean/l2"}))
    with pytest.raises(
        CheckpointError, match=r"bank@.* is of encoder 'another/mean/l2', and amn@.* of 'all-"
    ):
        Predictor.open(LVM / "production_model", bank)
