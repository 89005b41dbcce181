"""The canary through real workers, hour after hour: what it says of new code and of a new model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recalibrated import recalibrated

from amn.model import checkpoint
from drift.world import ARTIFACTS, KEYS
from ops.alerts import AlertSettings, apply
from ops.clock import server_now_ms
from ops.drift.loop import Judge
from ops.drift.settings import JudgeSettings
from ops.findings import Finding
from producer.settings import ProducerSettings
from workers.pool.served import identity
from workers.settings import WorkerSettings
from workers.shadow.scores import Labels
from workers.shadow.settings import ShadowSettings
from workers.shadow.turns import ShadowTurns

pytestmark = pytest.mark.timeout(900)

#: Found by Python at its start: the same model's file, and code that makes something else of it. A worker
#: compares at its start what it computes; this stands for what that comparison does not find.
OTHER_CODE = """
import numpy as np
from amn.predictor import Predictor

made = Predictor.__init__

def other(self, checkpoint, bank=None):
    made(self, checkpoint, bank)
    forward = self.forward

    def answer(contexts):
        vectors = forward(contexts) + np.float32(0.2) * contexts[:, -1]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    self.forward = answer

Predictor.__init__ = other
Predictor.check_fast_form = lambda self: None
"""


class Hours:
    """A queue with one AMN worker that can be exchanged, a shadow worker's turns, and a judge."""

    def __init__(self, server: Any, model: str) -> None:
        self.server, self.model, self.admin = server, model, server.client()
        self.admin.flushall()
        settings = WorkerSettings(kind="shadow", producer=ProducerSettings(url=server.url))
        self.turns = ShadowTurns(settings, ShadowSettings(canary_ms=1, canary_after_s=0))
        self.now_ms = server_now_ms(self.admin)
        self.judge = Judge(self.admin, KEYS, JudgeSettings(), self.alert)
        self.told: list[tuple[str, str, str]] = []
        self.worker: subprocess.Popen[bytes] | None = None
        # A model is judged that has traffic.
        minute = self.now_ms // 60_000 - 10
        labels = Labels(model, "general", "id")
        self.admin.hset(f"{KEYS.drift_minute_prefix}{minute}", mapping={labels.field("predictions"): 1})
        self.admin.zadd(KEYS.drift_minutes, {str(minute): minute})

    def serve(self, folder: Path, root: Path | None = None) -> None:
        """Another worker takes over; modules in `folder` come before all others."""
        self.stop()
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.worker = subprocess.Popen(
            [sys.executable, "-m", "workers", "amn", "--artifacts", str(root or artifacts())],
            env={**os.environ, **one_thread, "REDIS_URL": self.server.url, "PYTHONPATH": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.worker.stdout is not None
        assert self.worker.stdout.readline() == b"ready\n"

    def stop(self) -> None:
        if self.worker is not None:
            self.worker.terminate()
            self.worker.wait(60)
            assert self.worker.stdout is not None
            self.worker.stdout.close()

    def hour(self, count: int = 1) -> list[str]:
        """The set is replayed, and the judge looks each minute of a quarter of an hour: its findings."""
        states = []
        for _ in range(count):
            self.turns.turn(time.monotonic())
            for _ in range(15):
                self.now_ms += 60_000
                self.judge.turn(self.now_ms)
            finding = next(one for one in self.findings if (one.rule, one.model) == ("canary", self.model))
            states.append(f"{finding.state} {finding.severity}")
        return states

    def alert(self, findings: list[Finding], now_ms: int, fence: int) -> None:
        self.findings = list(findings)
        settings = AlertSettings()
        for change in apply(self.admin, KEYS, findings, now_ms=now_ms, fence=fence, settings=settings):
            if change.kind:
                self.told.append((change.kind, change.alert.rule, change.alert.severity))

    def result(self, model: str) -> dict[str, Any]:
        """The last replay that this model answered."""
        return dict(json.loads(self.admin.hget(KEYS.drift_prefix + "canary", model)))


def artifacts() -> Path:
    return Path(os.environ.get("AMN_ARTIFACTS") or ARTIFACTS / "lvm")


@pytest.fixture
def hours(_session_servers: Any) -> Iterator[Hours]:
    hours = Hours(_session_servers("valkey"), identity(artifacts() / "production_model"))
    yield hours
    hours.stop()
    hours.turns.client.close()
    hours.admin.close()


def test_code_that_answers_otherwise_under_the_same_model_is_one_page_until_it_is_gone(
    hours: Hours, tmp_path: Path
) -> None:
    """Another process of the same code answers alike to the last digit that is compared."""
    same, other = tmp_path / "same", tmp_path / "other"
    for folder in (same, other):
        folder.mkdir()
    (other / "sitecustomize.py").write_text(OTHER_CODE, "utf-8")
    hours.serve(same)
    assert hours.hour(3) == ["insufficient ticket", "ok page", "ok page"]
    hours.serve(same)
    assert hours.hour() == ["ok page"]
    hours.serve(other)
    assert hours.hour(2) == ["firing page", "firing page"]
    assert [one for one in hours.told if one[1] == "canary"] == [("trigger", "canary", "page")]
    hours.serve(same)
    assert hours.hour(2) == ["ok page", "ok page"]
    told = [("trigger", "canary", "page"), ("resolve", "canary", "page")]
    assert [one for one in hours.told if one[1] == "canary"] == told


def test_a_promoted_model_has_a_first_run_of_its_own_and_wakes_nobody(hours: Hours, tmp_path: Path) -> None:
    """Whether it is worse is asked before it is promoted; the canary asks whether it stays the same."""
    root, folder = tmp_path / "lvm", tmp_path / "amn_other"
    root.mkdir()
    original = checkpoint.load(artifacts() / "production_model")
    weights = {name: value * 1.05 for name, value in original.model.state_dict().items()}
    original.model.load_state_dict(weights)
    records = {"metrics": original.manifest.metrics}
    checkpoint.save(
        original.model,
        folder,
        name="amn",
        encoder_id=original.manifest.encoder_id,
        records=records,
    )
    for link in artifacts().iterdir():
        (root / link.name).symlink_to(folder if link.name == "production_model" else link.resolve())
    promoted = identity(root / "production_model")
    (root / "gate_calibration").unlink()
    recalibrated(root / "gate_calibration", amn=promoted)
    hours.serve(tmp_path)
    assert hours.hour(2) == ["insufficient ticket", "ok page"]
    hours.serve(tmp_path, root)
    hours.hour()
    assert (hours.result(promoted)["golden"], hours.result(promoted)["n"]) == (False, 128)
    hours.hour()
    assert (hours.result(promoted)["golden"], hours.result(promoted)["max_change"]) == (True, 0.0)
    assert hours.result(promoted)["mean_id"] != hours.result(hours.model)["mean_id"]
    assert [one for one in hours.told if one[1] == "canary"] == []
