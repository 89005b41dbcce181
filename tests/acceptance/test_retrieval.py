"""Fallback workers that look answers up: the same answers as without a queue, from one memory for all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from waiting import wait_until

from amn.config import ModelConfig
from amn.data.dataset import split_by_article
from amn.data.readers import read_vectors
from amn.model import checkpoint
from amn.model.layouts import build
from amn.predictor import Predictor
from amn.training.filing import fill
from producer import Options, Producer, ProducerSettings
from workers.pool.pool import Pool
from workers.pool.settings import PoolSettings

ROOT = Path(__file__).resolve().parents[2]
LVM = ROOT / "artifacts" / "lvm"


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """The shipped models, with a memory of the shipped sample as the fallback."""
    folder = tmp_path_factory.mktemp("retrieval") / "lvm"
    first = checkpoint.load(LVM / "production_model")
    data = read_vectors(ROOT / "artifacts" / "sample" / "sequences.npz", first.manifest.encoder_id)
    torch.manual_seed(0)
    model = build(ModelConfig(layout="retrieval", residual_max=first.model.config.residual_max))
    model.first.load_state_dict(first.model.state_dict())
    fill(model, data, split_by_article(data), 0, lambda *_: None)
    made = {"name": "retrieval", "encoder_id": data.encoder_id, "records": {}}
    checkpoint.save(model, folder / "models" / "retrieval", **made)
    for link in ("production_model", "reference_bank", "ood_slices"):
        (folder / link).symlink_to(LVM / link)
    (folder / "fallback_accuracy").symlink_to("models/retrieval")
    return folder


def mapped(pid: int) -> dict[str, int]:
    """KiB of the memory's file in a process: mapped, and written to."""
    found, here = {"Size": 0, "Private_Dirty": 0}, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name = line.split(":")[0]
        if "-" in line.split(" ")[0]:
            here = line.endswith("models/retrieval/model.safetensors")
        elif here and name in found:
            found[name] += int(line.split()[1])
    return found


def test_two_fallback_workers_answer_by_one_memory_as_the_model_does(make_server, artifacts):
    vectors = np.load(ROOT / "artifacts" / "sample" / "sequences.npz")["vectors"].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    contexts = np.stack([vectors[i : i + 5] for i in range(0, 800, 8)])
    amn, direct = (Predictor.open(artifacts / name) for name in ("production_model", "fallback_accuracy"))
    expected = direct.predict(contexts)
    assert np.abs(expected - amn.predict(contexts)).max() > 1e-3  # the memory has something to say
    url = make_server().url
    pool = Pool({"amn": 1, "fallback": 2}, PoolSettings(url=url, artifacts=artifacts, policy="card"))
    pool.start()
    try:
        pool.wait_ready(100)  # fallbacks run in what others leave of the machine
        asked = Options(escalate=True)
        with Producer(settings=ProducerSettings(url=url)) as producer:

            def answered(ask: Callable[..., Any], what: np.ndarray) -> Any:
                """The fallback's answer; on a busy machine AMN's may stand for it at first."""
                return wait_until(lambda: (got := ask(what, options=asked)).model == direct.model_id and got)

            replies = [answered(producer.predict, one) for one in contexts]
            batch = answered(producer.predict_batch, contexts)
        assert np.abs(np.stack([reply.vector for reply in replies]) - expected).max() < 1e-5
        assert np.abs(batch.vectors - expected).max() < 1e-5
        if sys.platform == "linux":
            for pid in pool.pids()["fallback"]:
                found = mapped(pid)
                assert found["Size"] > 5_000
                assert found["Private_Dirty"] < 100  # nobody wrote to it, so its pages are those of the file
    finally:
        pool.drain()
