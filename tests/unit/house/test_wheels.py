"""The wheels hold what the checkout holds, and the version of the models says which files they are."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import matrix
import pytest

ROOT = Path(__file__).resolve().parents[3]


def _parts(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


@pytest.fixture(scope="module")
def version() -> Callable[[Path], str]:
    with patch("setuptools.setup"):
        return runpy.run_path(str(ROOT / "artifacts" / "setup.py"))["version"]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A small folder of models that is laid out like the shipped one."""
    folder = tmp_path / "artifacts"
    for link, target in (
        ("production_model", "models/amn_20261124_070200"),
        ("ood_slices", "slices/a_20261123_1030"),
    ):
        (folder / "lvm" / target).mkdir(parents=True)
        (folder / "lvm" / target / "manifest.json").write_text("{}", "utf-8")
        (folder / "lvm" / link).symlink_to(target)
    (folder / "lvm" / "production_model" / "CARD.md").write_text("# Card", "utf-8")
    for name, text in (("sample/sequences.npz", "sample"), ("reports/benchmarks.json", "{}")):
        (folder / name).parent.mkdir()
        (folder / name).write_text(text, "utf-8")
    shutil.copy(ROOT / "artifacts" / "pyproject.toml", folder)
    return folder


def test_the_shipped_models_are_above_the_version_that_a_worker_requires(
    version: Callable[[Path], str],
) -> None:
    assert _parts(version(ROOT / "artifacts")) > [2026, 11, 30]


@pytest.mark.parametrize(
    "name",
    [
        "lvm/production_model/CARD.md",
        "lvm/ood_slices/manifest.json",
        "sample/sequences.npz",
        "reports/benchmarks.json",
    ],
)
def test_any_other_content_of_the_wheel_is_another_version(
    version: Callable[[Path], str], models: Path, name: str
) -> None:
    before = version(models)
    (models / name).write_text('{"other": 1}', "utf-8")
    assert version(models) != before == before.strip()


def test_files_that_are_not_in_the_wheel_change_no_version(
    version: Callable[[Path], str], models: Path
) -> None:
    before = version(models)
    (models / "reports" / "calibration.md").write_text("a report", "utf-8")
    assert version(models) == before


def test_a_model_or_a_figure_of_the_same_day_is_a_later_version(
    version: Callable[[Path], str], models: Path
) -> None:
    found = [version(models)]
    for minute in range(3, 9):  # a hash alone would put these in order once in 720 times
        (models / "lvm" / "production_model").unlink()
        name = f"models/amn_20261124_07{minute:02}00"
        (models / "lvm" / name).mkdir()
        (models / "lvm" / name / "manifest.json").write_text("{}", "utf-8")
        (models / "lvm" / "production_model").symlink_to(name)
        found.append(version(models))
    report = {"latency": {"date": "2026-11-24 06:00 to 2026-11-24 19:30"}}
    (models / "reports" / "benchmarks.json").write_text(json.dumps(report), "utf-8")
    found.append(version(models))
    assert found == sorted(found, key=_parts)
    assert found[0].startswith("2026.11.24.702.")
    assert found[-1].startswith("2026.11.24.1930.")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with two files, and a Python that only notes what it is asked."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("kept.txt", "lost.txt"):
        (folder / name).write_text(name, "utf-8")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run(["git", "add", "."], cwd=folder, check=True)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexit 1\n', "utf-8")
    python.chmod(0o755)
    return folder


def _build(checkout: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(ROOT / "ops" / "build_wheels"), str(checkout.parent / "python"), str(out)]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)


def test_nothing_is_built_from_half_a_copy(checkout: Path, tmp_path: Path) -> None:
    (checkout / "lost.txt").unlink()
    ended = _build(checkout, tmp_path / "dist")
    assert ended.returncode != 0
    assert "lost.txt" in ended.stderr
    assert not (tmp_path / "asked").exists()


def test_wheels_of_an_earlier_build_go_and_other_files_stay(checkout: Path, tmp_path: Path) -> None:
    out = tmp_path / "dist"
    out.mkdir()
    for name in ("amn_queue-0.1.0-py3-none-any.whl", "amn_queue_models-2026.1-py3-none-any.whl", "rq-3.whl"):
        (out / name).touch()
    _build(checkout, out)
    assert "wheel" in (tmp_path / "asked").read_text("utf-8")
    assert [path.name for path in out.iterdir()] == ["rq-3.whl"]


def test_a_supported_python_that_is_not_here_fails_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(
        matrix, "interpreter", lambda minor: sys.executable if minor != matrix.MINORS[0] else ""
    )
    monkeypatch.setattr(matrix, "tried", lambda row, *_: tried.append(row) is None)
    with pytest.raises(SystemExit, match=f"not here: Python 3.{matrix.MINORS[0]}"):
        matrix.main(Path(os.devnull), short=True)
    assert tried == []


def test_missing_pythons_that_are_allowed_are_named_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        matrix, "interpreter", lambda minor: sys.executable if minor != matrix.MINORS[0] else ""
    )
    monkeypatch.setattr(matrix, "tried", lambda *_: True)
    matrix.main(Path(os.devnull), short=True, allow_missing=True)
    assert f"not tried: Python 3.{matrix.MINORS[0]}" in capsys.readouterr().out.splitlines()[-1]


def test_a_machine_without_any_supported_python_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "interpreter", lambda _: "")
    with pytest.raises(SystemExit, match="no supported Python is here"):
        matrix.main(Path(os.devnull), short=True, allow_missing=True)
