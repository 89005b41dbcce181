"""What a test needs beside pip is said by the test, hidden from all others, and named where it is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from needs import GROUPS, Extra, stand_in

ROOT = Path(__file__).resolve().parents[3]
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
    """Runs TESTS with this PATH, and without the plugins that nobody asks for here."""
    (folder / "test_it.py").write_text(TESTS)
    (folder / "conftest.py").write_text('pytest_plugins = ("needs",)\n')
    (folder / "pytest.ini").write_text(f"[pytest]\npythonpath = {ROOT}/tests\nmarkers =\n  slow\n  needs\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "xdist", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PATH": path,
            "PYTHONPATH": os.pathsep.join([str(ROOT), f"{ROOT}/tests", str(folder)]),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def bare() -> str:
    """The PATH of a machine that has none of the programs: what a test of no group finds."""
    return os.environ["PATH"]


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
    assert re.search(r": redis-server, promtool, .*\(make test-programs.* redis-server prometheus ", first)
    assert first.endswith("; slow (make test-all)")
    assert re.search("promtool 1 tests.* prometheus", last)
    assert re.search("redis-server 3 tests.* redis-server", last)
    assert last.endswith("; slow 1 tests (make test-all)")
    assert "1 passed" in ended.stdout
    assert "skipped" not in ended.stdout


def test_a_selection_of_which_nothing_is_left_is_no_failure(bare: str, tmp_path: Path) -> None:
    ended = pytest_in(tmp_path, "-k", "test_a", path=bare)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "left out: promtool 1 tests (make test-programs, which installs prometheus)\n" in ended.stdout
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
    assert re.search("missing: .*promtool.* prometheus", ended.stderr)


def test_a_group_that_nobody_knows_is_an_error(bare: str, tmp_path: Path) -> None:
    (tmp_path / "test_typo.py").write_text("import pytest\n@pytest.mark.needs('redis')\ndef test(): pass\n")
    ended = pytest_in(tmp_path, path=bare)
    assert ended.returncode != 0
    assert "test_typo.py::test needs 'redis'; known are redis-server" in ended.stdout + ended.stderr


def test_the_stand_in_of_a_folder_has_everything_else(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("promtool", "other"):
        (tmp_path / "bin" / name).symlink_to(sys.executable)
    path = stand_in(tmp_path / "links", f"{tmp_path}/bin{os.pathsep}{tmp_path}/none")
    assert shutil.which("other", path=path)
    assert not shutil.which("promtool", path=path)


def test_the_path_of_a_bare_machine_is_printed_for_a_shell(full: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.needs", str(tmp_path / "links")]
    environment = {**os.environ, "PATH": full}
    path = subprocess.check_output(command, cwd=ROOT, env=environment, text=True).strip()
    assert shutil.which("redis-cli", path=full)
    assert not any(
        shutil.which(program, path=path) for group in GROUPS.values() for program in group.programs
    )


def test_make_installs_what_the_groups_name() -> None:
    recipe = (ROOT / "Makefile").read_text("utf-8").partition("\ntest-programs:")[2].partition("\n\n")[0]
    for group in GROUPS.values():
        assert isinstance(group, Extra) or set(group.packages.split()) <= set(recipe.split())


def test_an_extra_that_is_missing_is_named_with_the_line_that_brings_it(tmp_path: Path, bare: str) -> None:
    (tmp_path / "test_extra.py").write_text(
        "import pytest\n@pytest.mark.needs('ray')\ndef test_ray(): import ray\n"
    )
    (tmp_path / "hidden.py").write_text("import needs\nneeds.find_spec = lambda _: None\n")
    ended = pytest_in(tmp_path, "-p", "hidden", "-k", "test_ray", path=bare)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "left out: ray 1 tests (pip install 'amn-queue[ray]')\n" in ended.stdout


def test_who_must_have_everything_and_may_not_mount_is_told(tmp_path: Path, bare: str) -> None:
    (tmp_path / "test_disk.py").write_text(
        "import pytest\n@pytest.mark.needs('mount')\ndef test_disk(): pass\n"
    )
    (tmp_path / "bound.py").write_text("import needs\nneeds.may_mount = lambda: False\n")
    ended = pytest_in(tmp_path, "-p", "bound", "-k", "test_disk", path=bare)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "left out: mount 1 tests (as root, in a container with --privileged)\n" in ended.stdout
    ended = pytest_in(tmp_path, "-p", "bound", "--need-all", path=bare)
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert "mount (as root" in ended.stderr
