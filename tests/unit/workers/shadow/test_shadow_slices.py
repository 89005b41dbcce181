"""The OOD score: exact, of one context alone, and clean on the shipped sample."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from amn.data.vectors import VectorSet
from amn.errors import CheckpointError, DataError
from amn.evaluation.slices_fit import area, centres, fit, write
from amn.slices import Slicer, SlicesManifest, load_slices, unit_mean
from producer.messages import DEFAULT_ENCODER

SHIPPED = Path("artifacts/lvm/ood_slices")


def units(seed: int, *shape: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((*shape, 768)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def slicer(references: NDArray[np.float32], neighbours: int) -> Slicer:
    manifest = SlicesManifest(
        slices_id="slices@0",
        neighbours=neighbours,
        inside_max=0.4,
        outside_min=0.6,
        encoder_id="e",
        source="a test",
        sha256="",
    )
    return Slicer(references, units(9, 4), manifest)


def test_the_score_is_one_minus_the_mean_of_the_best_cosines() -> None:
    references, context = units(0, 50), units(1, 5)
    mean = context.astype(np.float64).mean(axis=0)
    cosines = np.sort(references @ (mean / np.linalg.norm(mean)))
    found = slicer(references, 3).measure(context)
    assert found.score == pytest.approx(1 - cosines[-3:].mean(), abs=1e-6)
    assert found.cell == int((units(9, 4) @ unit_mean(context)).argmax())


def test_a_context_without_a_direction_is_far_from_everything() -> None:
    row = units(0)
    context = np.stack([row, -row, row, -row, np.zeros_like(row)])
    assert slicer(units(0, 50), 3).measure(context).score == 1.0


@pytest.mark.parametrize(
    ("score", "name"), [(0.1, "id"), (0.4, "id"), (0.41, "unsure"), (0.6, "unsure"), (0.61, "ood")]
)
def test_between_the_thresholds_a_context_is_in_neither_slice(score: float, name: str) -> None:
    assert slicer(units(0, 50), 3).slice_of(score) == name


def test_the_shipped_score_tells_the_samples_slices_apart() -> None:
    """Held-out articles and the unseen domain of the sample; 300 of each."""
    shipped = load_slices(SHIPPED, DEFAULT_ENCODER)
    with np.load("artifacts/sample/sequences.npz", allow_pickle=False) as sample:
        rows, article = sample["vectors"].astype(np.float32), sample["article"]
        slices = sample["article_slice"][article]
    found = {}
    for name in ("id", "ood"):
        starts = [
            i
            for i in range(len(rows) - 5)
            if article[i] == article[i + 4] and slices[i] == slices[i + 4] == name
        ]
        scores = [shipped.measure(rows[i : i + 5]).score for i in starts[:: len(starts) // 300]]
        found[name] = [shipped.slice_of(score) for score in scores]
    assert found["ood"].count("ood") > 0.99 * len(found["ood"])
    assert found["id"].count("ood") < 0.05 * len(found["id"])
    assert found["id"].count("id") > 0.75 * len(found["id"])


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "slices"
    shutil.copytree(SHIPPED.resolve(), folder)
    (folder / "centroids.npy").write_bytes((SHIPPED / "centroids.npy").read_bytes()[:-2] + b"xy")
    with pytest.raises(CheckpointError, match="has sha256"):
        load_slices(folder, DEFAULT_ENCODER)
    shutil.copy(SHIPPED / "centroids.npy", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "inside_max": 0.9}))
    with pytest.raises(CheckpointError, match="do not fit together"):
        load_slices(folder, DEFAULT_ENCODER)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_slices(tmp_path / "missing", DEFAULT_ENCODER)


def test_slices_of_another_encoder_are_refused_with_what_to_do() -> None:
    said = r"encoder 'all-mpnet-base-v2/mean/l2', and contexts of 'other/cls/l2'.*`amn slices`.*or remove"
    with pytest.raises(CheckpointError, match=said):
        load_slices(SHIPPED, "other/cls/l2")


SETTINGS: dict[str, Any] = {"unseen_domain": "far", "references": 60, "neighbours": 5, "cells": 8}


@pytest.fixture(scope="module")
def data() -> VectorSet:
    """Thirty articles about one of three themes, two far articles about a fourth."""
    draw = np.random.default_rng(0)
    themes = units(3, 4)
    theme = np.array([*(i % 3 for i in range(30)), 3, 3])
    article = np.repeat(np.arange(32), 20)
    rows = themes[theme[article]] + 0.03 * draw.standard_normal((len(article), 768)).astype(np.float32)
    return VectorSet(
        vectors=rows / np.linalg.norm(rows, axis=1, keepdims=True),
        article=article,
        article_domain=np.array([*["near"] * 30, "far", "far"]),
        article_name=np.array([f"a{i}" for i in range(32)]),
        source="made up",
        encoder_id="a-test/mean/l2",
    )


def test_what_is_fitted_is_read_back_and_scores_the_same(tmp_path: Path, data: VectorSet) -> None:
    found = fit(data, **SETTINGS)
    assert found.manifest.measured["auc"] == 1.0
    assert found.manifest.measured["true_ood"] == 1.0
    manifest = write(found, tmp_path / "new")
    assert manifest.encoder_id == data.encoder_id
    read = load_slices(tmp_path / "new", data.encoder_id)
    assert read.manifest == manifest
    assert read.cells == 8
    assert read.slice_of(read.measure(data.rows(slice(31 * 20, 31 * 20 + 5))).score) == "ood"


@pytest.mark.parametrize("change", [{"references": 100_000}, {"neighbours": 61}, {"cells": 257}])
def test_a_fit_that_the_data_cannot_give_is_refused(data: VectorSet, change: dict[str, int]) -> None:
    with pytest.raises(DataError, match="do not fit"):
        fit(data, **SETTINGS | change)


def test_the_area_counts_pairs_and_half_of_the_ties() -> None:
    inside, outside = np.array([0.1, 0.2, 0.3], np.float32), np.array([0.2, 0.4], np.float32)
    assert area(inside, outside) == pytest.approx((1 + 0.5 + 3) / 6)


def test_centres_are_unit_vectors_near_their_members(data: VectorSet) -> None:
    found = centres(data.rows(slice(0, 600)), 3, np.random.default_rng(1))
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
