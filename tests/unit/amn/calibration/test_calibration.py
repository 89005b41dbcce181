"""Calibration: the features, the fits, the artifact, and the whole command on small documents."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amn_helpers import articles, contexts, vector_set
from numpy.typing import NDArray

from amn.bank.bank import Neighbours
from amn.calibration.calibrate import calibrate, suggested_policy
from amn.calibration.fit import fit_linear, fit_weights
from amn.calibration.report import escalated_share, text
from amn.calibration.windows import FITTED, JUDGED, Slice, score_slice
from amn.errors import CheckpointError
from amn.evaluation.metrics import Predict, context_mean, last_vector
from amn.gate.gain import FEATURES, Linear, blend, features, load_calibration, save_calibration
from amn.gate.scores import GateScores
from amn.manifest import MANIFEST
from amn.policy import load_policy, parse_policy

GAIN_ALONE = parse_policy('format = 1\nname = "x"\n[gain]\nmin = 0.0\n', "a test")


def test_the_features_are_what_they_are_called():
    x = contexts(6).numpy()
    mixture = x @ np.ones(768, np.float32)[:, None]  # any weights
    inside = np.einsum("bk,bkd->bd", mixture[..., 0], x)
    inside /= np.linalg.norm(inside, axis=1, keepdims=True)
    found = dict(zip(FEATURES, features(x, inside).T, strict=True))
    mean = x.mean(1)
    assert np.abs(found["novelty"]).max() < 0.01
    np.testing.assert_allclose(found["length"], np.linalg.norm(mean, axis=1), rtol=1e-5)
    np.testing.assert_allclose(found["to_last"], np.vecdot(inside, x[:, 4]), rtol=1e-4)
    expected = np.vecdot(inside, mean) / np.linalg.norm(mean, axis=1)
    np.testing.assert_allclose(found["to_mean"], expected, rtol=1e-4)
    np.testing.assert_allclose(found["coherence"], np.vecdot(x[:, 1:], x[:, :-1]).mean(1), rtol=1e-5)


def test_a_prediction_outside_the_contexts_span_is_all_novelty():
    x = np.eye(768, dtype=np.float32)[None, :5]
    assert features(x, np.eye(768, dtype=np.float32)[None, 9])[0, 0] == pytest.approx(1.0)


def test_novelty_does_not_change_when_everything_is_turned():
    """So turned text can stand for unfamiliar text: the features see no directions."""
    x = contexts(8).numpy()
    answers = x[:, 2]
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(768, 768)))[0].astype(np.float32)
    np.testing.assert_allclose(features(x @ turn, answers @ turn), features(x, answers), atol=1e-5)


def test_a_linear_fit_shrinks_and_survives_its_storage():
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(400, 5)) * [1, 2, 3, 4, 5] + 7
    target = 2 * rows[:, 0] + 0.01 * draw.normal(size=400) + 3
    stored = json.loads(json.dumps(fit_linear(rows, target)))
    model = Linear.of(stored)
    # Of 400 standardised rows a penalty of 30 takes 30 / 430 of the slope, and leaves the mean alone.
    np.testing.assert_allclose(model.coefficients, [2 * 400 / 430, 0, 0, 0, 0], atol=0.01)
    assert model.predict(rows).mean() == pytest.approx(target.mean())


def windows(gain: float, *, noise: float, count: int = 1200, name: str = "validation") -> Slice:
    """Windows on which a small weight gains about `gain` per unit of weight."""
    draw = np.random.default_rng(1)
    rows = draw.uniform(0, 1, size=(count, 7))
    fast = np.full(count, 0.6)
    return Slice(
        name=name,
        rows=rows,
        mean_top=rows[:, 5],
        fast=fast,
        slow=fast + gain + noise * draw.normal(size=count),
        agreement=np.full(count, 0.99),
        articles=np.arange(count) // 10,
    )


def test_weights_are_zero_unless_the_gain_is_certain():
    assert max(fit_weights(windows(-0.05, noise=0.01))[1]) == 0
    assert min(fit_weights(windows(0.05, noise=0.01))[1]) == pytest.approx(1.0)
    # The mean of the blend is above zero here, and drowns in the noise.
    assert max(fit_weights(windows(0.0, noise=2.0))[1]) == 0


def test_equal_scores_share_what_is_left_and_the_best_come_first():
    share = escalated_share(np.array([3.0, 1.0, 1.0, 2.0]), 0.75)
    np.testing.assert_allclose(share, [1, 0.5, 0.5, 1])


def test_a_blend_is_of_unit_norm_and_at_weight_zero_the_first_answer_itself():
    rows = contexts(4).numpy()
    fast, slow = rows[:, 0], rows[:, 1]
    mixed = blend(fast, slow, np.array([0.0, 0.25, 0.5, 1.0]))
    np.testing.assert_allclose(np.linalg.norm(mixed, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(mixed[0], fast[0])
    np.testing.assert_allclose(mixed[3], slow[3], atol=1e-6)


class Bank:
    vectors = np.eye(768, dtype=np.float32)

    def top2(self, predictions: NDArray[np.float32]) -> Neighbours:
        best = -np.sort(-np.abs(predictions), axis=1)[:, :2]
        count = len(best)
        return Neighbours(best[:, 0], best[:, 1], np.zeros(count, np.intp))


def calibrated(amn: Predict, fallback: Predict, out: Path) -> dict[str, Any]:
    """The whole calibration of two baselines on small documents."""
    data = vector_set(**articles(count=160))
    starts = data.window_starts()
    slices = {
        name: score_slice(name, starts[i::4], data, (amn, fallback), Bank())
        for i, name in enumerate((*FITTED, *JUDGED))
    }
    return calibrate(slices, {"amn": "amn@1", "fallback": "gru@2", "bank": "bank@3"}, data, out)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A fallback that helps: the context mean, where the other repeats the last vector."""
    out = tmp_path_factory.mktemp("calibration")
    return out, calibrated(last_vector, context_mean, out)


def test_a_fallback_that_never_helps_gets_no_weight_and_nothing_escalates(tmp_path):
    report = calibrated(context_mean, last_vector, tmp_path)
    assert not any(report["weights"])
    gains = [json.loads(line)["gain"] for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    assert max(gains) <= 0  # so no soft rule escalates
    assert report["curves"]["test"]["oracle"]["1"]["mean"] == 0
    assert "no soft rule will escalate" in text(report)


def test_calibrate_writes_an_artifact_that_loads_and_a_policy_that_is_valid(run):
    out, report = run
    calibration = load_calibration(out)
    assert calibration.fits("amn@1", "gru@2")
    assert not calibration.fits("amn@1", "gru@3")
    assert report["score"] == "linear"
    assert min(calibration.weights) > 0
    assert report["curves"]["test"]["oracle"]["1"]["low"] > 0
    assert report["calibration_id"] == calibration.calibration_id
    assert load_policy(str(out / "suggested_policy.toml")).name == "suggested"
    lines = (out / "decisions.jsonl").read_text().splitlines()
    assert len(lines) == sum(report["n"].values())


def test_where_the_fallback_has_no_weight_no_gain_is_predicted(run):
    calibration = load_calibration(run[0])
    rows = np.random.default_rng(0).uniform(0, 1, size=(200, len(FEATURES)))
    weights = calibration.weight(rows)
    assert (calibration.gain(rows)[weights == 0] == 0).all()


def test_a_worker_scores_a_batch_as_the_features_do(run):
    x = contexts(50).numpy()
    answers = x[:, 3]
    constant = replace(load_calibration(run[0]), model=Linear(coefficients=np.zeros(0), intercept=0.5))
    for calibration in (load_calibration(run[0]), constant):
        scores = GateScores(GAIN_ALONE, None, calibration)(x, answers)
        # The compiled loops add in another order than NumPy, on some processors with fused products.
        np.testing.assert_allclose(scores.gain, calibration.gain(features(x, answers)), rtol=1e-12)


def test_every_score_is_held_against_random_and_the_oracle(run):
    curves = run[1]["curves"]["test"]
    assert {"oracle", "random", "low confidence", "thin margin", "predicted gain"} <= set(curves)
    for rate in ("0.05", "0.2"):
        best = curves["oracle"][rate]["mean"]
        assert all(curve[rate]["mean"] <= best + 1e-9 for curve in curves.values())


def test_a_changed_calibration_is_refused(run, tmp_path):
    stored = json.loads((run[0] / MANIFEST).read_text())
    stored["content"]["weights"][0] = 0.5 if stored["content"]["weights"][0] != 0.5 else 0.4
    (tmp_path / MANIFEST).write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match="was changed"):
        load_calibration(tmp_path)
    with pytest.raises(CheckpointError, match="such as card"):
        load_calibration(tmp_path / "nowhere")


def test_a_threshold_is_suggested_only_when_it_takes_something():
    taken = suggested_policy({"threshold": 0.002, "rate": 0.17, "rate_upper_95": 0.2})
    nothing = suggested_policy({"threshold": 0.002, "rate": 0.0, "rate_upper_95": 0.0})
    assert parse_policy(taken, "x").gain.min == 0.002
    assert parse_policy(nothing, "x").gain.min == 0


def test_another_format_is_refused(tmp_path):
    save_calibration({"format": 99}, tmp_path)
    with pytest.raises(CheckpointError, match="another format"):
        load_calibration(tmp_path)


def test_the_shipped_calibration_is_of_the_shipped_models():
    root = Path("artifacts/lvm")
    models = [
        json.loads((root / name / "manifest.json").read_text())
        for name in ("production_model", "fallback_accuracy")
    ]
    calibration = load_calibration(root / "gate_calibration")
    assert calibration.fits(*(f"{m['name']}@{m['sha256'][:12]}" for m in models))
