"""Fixtures of whole processes: the command in a folder, a running service, real contexts."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command import ROOT, SAMPLE, Amn
from numpy.typing import NDArray
from waiting import wait_until

from amn.model import checkpoint


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """Links to the shipped models, which a test may move."""
    root = tmp_path / "lvm"
    root.mkdir()
    for link in (ROOT / "artifacts" / "lvm").iterdir():
        if link.is_symlink():
            (root / link.name).symlink_to(link.resolve())
    return root


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    """The production model with weights that differ in the seventh digit: another id, same figures."""
    original = checkpoint.load(ROOT / "artifacts" / "lvm" / "production_model")
    weights = {name: value * (1 + 1e-6) for name, value in original.model.state_dict().items()}
    original.model.load_state_dict(weights)
    folder = tmp_path / "models" / "amn_twin"
    checkpoint.save(
        original.model,
        folder,
        name="amn",
        encoder_id=original.manifest.encoder_id,
        records={"metrics": original.manifest.metrics},
    )
    return folder


@pytest.fixture
def amn(tmp_path: Path) -> Amn:
    return Amn(tmp_path)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Amn]:
    """A running `amn up`; commands of this `Amn` find it by themselves."""
    running = Amn(tmp_path_factory.mktemp("service"))
    process = running.start("up", "--workers", 1)
    log = running.folder / "up.log"
    try:
        wait_until(lambda: "Ctrl-C drains" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)


@pytest.fixture(scope="session")
def real_contexts() -> NDArray[np.float32]:
    """Shape (300, 5, 768): windows over the shipped sample."""
    with np.load(SAMPLE, allow_pickle=False) as stored:
        rows = stored["vectors"][:304].astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.stack([rows[i : i + 5] for i in range(300)])
