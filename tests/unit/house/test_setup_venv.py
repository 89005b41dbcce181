"""The set-up looks at what an install takes before it fetches anything, and names all that is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[3] / "ops" / "setup_venv"


def set_up(folder: Path, python: str, **programs: str) -> subprocess.CompletedProcess[str]:
    """Runs it with this Python, and with programs of the test's own before those of the system."""
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHON": python, "TMPDIR": str(folder)}
    command = [str(SETUP), str(folder / "venv")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


DF = 'echo "Filesystem 1024-blocks Used Available Capacity Mounted on"; echo "/dev/x 9 9 {} 9% /"'
#: Of a version that serves, and without what makes environments, as Debian's without python3-venv.
WITHOUT_VENV = 'case "$2" in *ensurepip*) exit 1;; esac'


@pytest.mark.parametrize(
    ("python", "programs", "told"),
    [
        ("no-such-python", {}, ["no Python of 3.11 or later among no-such-python", "PYTHON=/path/to"]),
        ("old", {"old": "exit 1"}, ["no Python of 3.11 or later among old"]),
        ("bare", {"bare": WITHOUT_VENV}, ["bare cannot make virtual environments", "python3-venv"]),
        (sys.executable, {"df": DF.format(1_024_000)}, ["1000 MB are free in", "an install takes 2500 MB"]),
        ("old", {"old": "exit 1", "df": DF.format(0)}, ["no Python", "an install takes", "fetching it"]),
    ],
    ids=["no Python", "an old one", "without venv", "a full disk", "nothing at all"],
)
def test_what_is_missing_is_named_in_one_line_and_nothing_is_made(
    python: str, programs: dict[str, str], told: list[str], tmp_path: Path
) -> None:
    ended = set_up(tmp_path, python, **programs)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("make: nothing was installed: ")
    assert all(words in line for words in told), line
    assert not (tmp_path / "venv").exists()
    assert ended.stdout == ""


def test_where_nothing_is_missing_an_environment_is_made(tmp_path: Path) -> None:
    ended = set_up(tmp_path, sys.executable, df=DF.format(9_999_999))
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "venv" / "bin" / "pip").exists()
