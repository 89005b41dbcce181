"""What the models say directly, without any queue: the answers that the run is held against."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ops.sample import Sample

#: Links that a worker follows, and what they are to this run.
LINKS = ("production_model", "fallback_accuracy", "reference_bank", "gate_calibration")
_BATCH = 64


def freeze_artifacts(source: Path, target: Path) -> None:
    """Copies what the links name now: a restarted worker must serve what was checked."""
    target.mkdir(parents=True)
    for name in LINKS:
        shutil.copytree((source / name).resolve(), target / name)


def write_expected(sample_path: Path, artifacts: Path, target: Path) -> None:
    """Predicts every window of the sample with both models; one array (W, 768) a model id."""
    import torch

    from amn.predictor import Predictor

    torch.set_num_threads(1)
    sample = Sample.load(sample_path)
    found: dict[str, NDArray[np.float32]] = {}
    for link in LINKS[:2]:
        predictor = Predictor.open(artifacts / link)
        rows = [
            predictor.predict(np.stack([sample.context(i) for i in range(first, last)]))
            for first, last in _spans(len(sample))
        ]
        found[predictor.model_id] = np.concatenate(rows)
    np.savez(target, **found)  # type: ignore[arg-type]


def read_expected(path: Path) -> dict[str, NDArray[np.float32]]:
    """Model id -> (W, 768)."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _spans(total: int) -> list[tuple[int, int]]:
    return [(first, min(first + _BATCH, total)) for first in range(0, total, _BATCH)]
