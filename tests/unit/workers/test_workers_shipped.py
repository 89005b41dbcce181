"""The places of models, in order: one that was named, the current folder, the checkout, the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from workers import settings

ROOT = Path(__file__).resolve().parents[3]
ASK = "from workers.settings import artifacts_root, shipped; print(artifacts_root(), shipped('lvm'))"


def asked(folder: Path, *site: Path, **environment: str) -> list[str]:
    """What packages in `site` answer a process in `folder`."""
    known = {name: value for name, value in os.environ.items() if name != "AMN_ARTIFACTS"}
    ended = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=folder,
        env={**known, "PYTHONPATH": os.pathsep.join(map(str, site)), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.split()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The packages, installed: no folder `artifacts` lies beside them."""
    folder = tmp_path / "site"
    for name in ("producer", "workers"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    models = folder / "amn_queue_models"
    (models / "lvm").mkdir(parents=True)
    (models / "__init__.py").touch()
    return folder


def test_each_place_comes_before_the_next_one(site: Path, tmp_path: Path):
    package = str(site / "amn_queue_models" / "lvm")
    assert asked(tmp_path, site) == [package] * 2
    (site / "artifacts" / "lvm").mkdir(parents=True)
    checkout = str(site / "artifacts" / "lvm")
    assert asked(tmp_path, site) == [checkout] * 2
    (tmp_path / "artifacts" / "lvm").mkdir(parents=True)
    assert asked(tmp_path, site) == ["artifacts/lvm"] * 2
    assert asked(tmp_path, site, AMN_ARTIFACTS="/srv/lvm") == ["/srv/lvm", "artifacts/lvm"]


def test_where_there_is_none_the_path_in_the_current_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert settings.shipped("no-such-file") == Path("artifacts/no-such-file")
