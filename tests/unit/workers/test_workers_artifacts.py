"""Artifacts that do not belong together: a worker says which, and does not start."""

from __future__ import annotations

from pathlib import Path

import pytest
from recalibrated import SHIPPED, recalibrated

from workers.errors import NotReady
from workers.kinds import build
from workers.settings import Artifacts, QueueSettings, WorkerSettings

ROOT = SHIPPED.parent


@pytest.mark.parametrize(
    ("kind", "link", "role"),
    [("amn", "production_model", "amn"), ("fallback", "fallback_accuracy", "fallback")],
)
def test_a_worker_refuses_a_calibration_of_another_model_and_names_ids_links_and_ways_out(
    kind: str, link: str, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.set_num_interop_threads", lambda _: None)  # once in a process
    folder = recalibrated(tmp_path / "gate_calibration", **{role: "other@000000000000"})
    artifacts = Artifacts(model=ROOT / link, bank=ROOT / "reference_bank", calibration=folder)
    with pytest.raises(NotReady) as refused:
        build(WorkerSettings(kind=kind, queue=QueueSettings(batch_max=1)), artifacts)
    for words in (
        "other@000000000000",
        str(ROOT / link),
        str(folder),
        "amn promote --calibration",
        "rollback",
    ):
        assert words in str(refused.value)
    card = Artifacts(model=ROOT / link, bank=ROOT / "reference_bank", calibration=folder, policy="card")
    build(WorkerSettings(kind=kind, queue=QueueSettings(batch_max=1)), card)  # it looks at no gain
