"""What the end-to-end tests of the drift judgement share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amn.predictor import Predictor
from amn.slices import load_slices
from drift.world import ARTIFACTS, Increments, Sample, Scorer, Service, Vectors
from producer.messages import DEFAULT_ENCODER


@pytest.fixture(scope="session")
def sample() -> Sample:
    return Sample()


@pytest.fixture(scope="session")
def scored() -> Scorer:
    root = Path(os.environ.get("AMN_ARTIFACTS") or ARTIFACTS / "lvm")
    predictor = Predictor.open(root / "production_model", root / "reference_bank")
    return Scorer(
        lambda contexts: np.asarray(predictor.forward(np.ascontiguousarray(contexts))),
        load_slices(root / "ood_slices", DEFAULT_ENCODER),
    )


@pytest.fixture(scope="session")
def rotation() -> Vectors:
    """Turns half of the dimensions, always in the same way."""
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(384, 384)))[0]
    whole = np.eye(768)
    whole[::2, ::2] = turned
    return whole.astype(np.float32)


@pytest.fixture(scope="session")
def pools(sample: Sample, scored: Scorer) -> dict[str, list[Increments]]:
    """Scores of healthy traffic, by slice."""
    return {name: scored(sample.windows(name), name) for name in ("ood", "id")}


@pytest.fixture
def service(_session_servers: Any, pools: dict[str, list[Increments]]) -> Iterator[Service]:
    """A day in health, from which the judge has learned its baseline, and three hours more."""
    admin = _session_servers("valkey").client()
    admin.flushall()
    service = Service(admin)
    service.live(24.2, pools["ood"], pools["id"], judged=False)
    service.live(3, pools["ood"], pools["id"])
    assert service.begun == []
    assert service.one("ood_delta").state == "ok"
    assert service.one("input_drift").state == "ok"
    yield service
    service.receiver.stop()
    admin.close()
