"""What a test needs beside pip is said by the test, hidden from all others, and named where it is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from needs import GROUPS, stand_in

ROOT = Path(__file__).resolve().parents[2]
#: Tests of one group each, a slow one, and one in no group that looks for all programs.
TESTS = """
import shutil, pytest
from needs import GROUPS

@pytest.mark.needs("promtool")
def test_a(): assert shutil.which("promtool")

@pytest.mark.needs("redis-server")
@pytest.mark.parametrize("n", range(3))
def test_b(n): assert shutil.which("redis-cli")

@pytest.mark.slow
def test_c(): pass

def test_d():
    for group in GROUPS.values():
        assert not any(map(shutil.which, group.programs))
"""


def pytest_in(folder: Path, *arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    """Runs TESTS with a PATH that begins with `path`, and with stand-ins of all programs behind it or not."""
    (folder / "test_it.py").write_text(TESTS)
    (folder / "conftest.py").write_text('pytest_plugins = ("needs",)\n')
    (folder / "pytest.ini").write_text(f"[pytest]\npythonpath = {ROOT}/tests\nmarkers =\n  slow\n  needs\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT}/tests"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """The PATH of a machine that has none of the programs."""
    return stand_in(tmp_path / "bare")


@pytest.fixture
def full(tmp_path: Path, bare: str) -> str:
    """The same with all of them: that they are there is enough here."""
    folder = tmp_path / "full"
    folder.mkdir()
    for group in GROUPS.values():
        for program in group.programs:
            (folder / program).symlink_to(sys.executable)
    return f"{folder}{os.pathsep}{bare}"


@pytest.mark.parametrize("processes", ["0", "2"])
def test_what_is_missing_is_left_out_and_named_at_the_start_and_the_end(
    processes: str, bare: str, tmp_path: Path
) -> None:
    ended = pytest_in(tmp_path, "--quick", "-n", processes, path=bare)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    first, last = re.findall(r"^left out.*$", ended.stdout, re.MULTILINE)
    for group in ("promtool", "redis-server"):
        assert f"{group} ({GROUPS[group].remedy})" in first
    assert "slow (make test-all)" in first
    assert "promtool 1 tests" in last
    assert "redis-server 3 tests" in last
    assert "slow 1 tests" in last
    assert "1 passed" in ended.stdout
    assert "skipped" not in ended.stdout


def test_a_selection_of_which_nothing_is_left_is_no_failure(bare: str, tmp_path: Path) -> None:
    ended = pytest_in(tmp_path, "-k", "test_a", path=bare)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "left out: promtool 1 tests (apt-get install prometheus)\n" in ended.stdout
    assert pytest_in(tmp_path, "-k", "no_such_test", path=bare).returncode == 5


def test_with_every_program_nothing_is_left_out_and_only_a_test_that_says_so_finds_one(
    full: str, tmp_path: Path
) -> None:
    ended = pytest_in(tmp_path, path=full)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "6 passed" in ended.stdout
    assert "promtool" not in ended.stdout


def test_a_program_that_must_be_there_is_an_error_that_says_how_to_have_it(bare: str, tmp_path: Path) -> None:
    ended = pytest_in(tmp_path, "--need-all", path=bare)
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert "promtool (apt-get install prometheus)" in ended.stderr


def test_a_group_that_nobody_knows_is_an_error(bare: str, tmp_path: Path) -> None:
    (tmp_path / "test_typo.py").write_text("import pytest\n@pytest.mark.needs('redis')\ndef test(): pass\n")
    ended = pytest_in(tmp_path, path=bare)
    assert ended.returncode != 0
    assert "test_typo.py::test needs 'redis'; known are redis-server" in ended.stdout + ended.stderr


def test_no_program_of_a_group_is_found_by_this_test() -> None:
    assert not any(shutil.which(program) for group in GROUPS.values() for program in group.programs)
    assert shutil.which("sh")


def test_make_installs_what_the_groups_name() -> None:
    recipe = (ROOT / "Makefile").read_text("utf-8").partition("\ntest-programs:")[2].partition("\n\n")[0]
    for group in GROUPS.values():
        packages = re.findall(r"apt-get install ([^,]+)", group.remedy)[0].split()
        assert set(packages) <= set(recipe.split())
