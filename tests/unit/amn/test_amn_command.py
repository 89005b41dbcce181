"""The command `amn` refuses packages of other projects that stand in the place of ours, and says which."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from amn import __main__ as command

ROOMS = ("producer", "workers", "ops")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder in which the command was installed, with a command line that only says that it ran."""
    folder = tmp_path / "site"
    for name in ("amn", *ROOMS):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f'"""Our {name}."""\n')
    shutil.copy(command.__file__, folder / "amn" / "__main__.py")
    (folder / "ops" / "cli.py").write_text("def main():\n    print('ran')\n")
    info = folder / "amn_queue-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: amn-queue\nVersion: 0.1.0\n")
    rows = [f"{name}/__init__.py,sha256={command._hash(folder / name / '__init__.py')},9" for name in ROOMS]
    (info / "RECORD").write_text("\n".join(rows) + "\n")
    return folder


def run(site: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    line = [sys.executable, *options, "-m", "amn"]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_command_runs_where_every_package_is_ours(site: Path, tmp_path: Path):
    assert run(site, tmp_path).stdout == "ran\n"


@pytest.mark.parametrize("name", ROOMS)
def test_a_package_of_the_current_folder_is_named_and_not_run(name: str, site: Path, tmp_path: Path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("print('another project')\n")
    ended = run(site, tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"amn: `import {name}` finds {tmp_path / name}, which is not the package")
    assert str(site / name) in ended.stderr
    assert run(site, tmp_path, "-P").stdout == "ran\n"


def test_a_package_that_another_distribution_wrote_over_is_named(site: Path, tmp_path: Path):
    (site / "ops" / "__init__.py").write_text('"""Charms."""\n')
    ended = run(site, tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"amn: {site / 'ops' / '__init__.py'} is not as amn-queue installed it")


def test_a_package_that_was_removed_is_named(site: Path, tmp_path: Path):
    (site / "workers" / "__init__.py").unlink()
    ended = run(site, tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"the package workers of amn-queue is not in {site}" in ended.stderr
