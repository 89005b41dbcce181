"""What some tests need beside what pip brings: named groups, left out and named where a program is missing.

`@pytest.mark.needs("redis-server")` puts a test, or one of its parameters, into a group. A test that is in
none finds these programs nowhere, also on a machine that has them: so every run shows what a machine
without them would show. `--need-all` makes a missing program an error, as CI wants it; `--quick` leaves the
group `slow` out as well.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from amn.kernel import bindings as kernel

#: Where a process of pytest-xdist hands its count to the one that reports.
_SENT = "left_out"
_ROOT = Path(__file__).resolve().parents[1]
_PATH = os.environ.get("PATH", os.defpath)
_left_out = pytest.StashKey[Counter[str]]()
_hidden = pytest.StashKey[str]()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Programs that tests need, and Debian's packages of them.

    Attributes:
        programs: Their names on the PATH.
        packages: What brings them, as `make test-programs` names it; of an `Extra`, the Python package.
    """

    programs: tuple[str, ...]
    packages: str

    def here(self) -> bool:
        return all(shutil.which(program, path=_PATH) for program in self.programs)


class Loops(Group):
    """A compiler is needed once, when the package is installed: what it made is what counts."""

    def here(self) -> bool:
        return kernel.READY


def faketime() -> Path | None:
    """The library of Debian's package, or the one that AMN_LIBFAKETIME names; None where there is none."""
    named = os.environ.get("AMN_LIBFAKETIME")
    found = [Path(named)] if named else sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return next((path for path in found if path.is_file()), None)


class Preloaded(Group):
    """A library, which may also be named by a variable: it gives a process a clock of the test's."""

    def here(self) -> bool:
        return bool(faketime()) and (super().here() or "AMN_LIBFAKETIME" in os.environ)


class Extra(Group):
    """A package that only one example needs, too large to bring it with the others."""

    def here(self) -> bool:
        return find_spec(self.packages) is not None

    def brought_by(self, name: str) -> str:
        return f"pip install 'amn-queue[{name}]'"


class Apart(Extra):
    """A package in a virtual environment of its own, which a target of make brings."""

    def python(self) -> Path:
        return _ROOT / ".venv-triton" / "bin" / "python"

    def here(self) -> bool:
        return self.python().exists()

    def brought_by(self, name: str) -> str:
        return f"make {name}"


class Node(Extra):
    """Node.js, and beside the client in `examples/node` the packages that it takes."""

    def program(self) -> str | None:
        return shutil.which("node", path=f"{_ROOT / '.venv-node' / 'bin'}{os.pathsep}{_PATH}")

    def here(self) -> bool:
        return bool(self.program()) and (_ROOT / "examples" / "node" / "node_modules").is_dir()

    def brought_by(self, name: str) -> str:
        return f"make {name}"


@cache
def may_mount() -> bool:
    """True for who may mount; what is tried ends with the name space that it is tried in."""
    tried = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    return (
        bool(shutil.which("unshare", path=_PATH))
        and not subprocess.run(tried, capture_output=True).returncode
    )


class Mount(Extra):
    """A right, which a container may keep even from root."""

    def here(self) -> bool:
        return may_mount()

    def brought_by(self, name: str) -> str:
        return "as root, in a container with --privileged"


GROUPS = {
    "redis-server": Group(programs=("redis-server", "redis-cli"), packages="redis-server"),
    "promtool": Group(programs=("promtool",), packages="prometheus"),
    "faketime": Preloaded(programs=("faketime",), packages="faketime"),
    "chromium": Group(programs=("chromium",), packages="chromium"),
    "systemd-analyze": Group(programs=("systemd-analyze",), packages="systemd"),
    "compiled loops": Loops(programs=("cc", "gcc"), packages="gcc libc6-dev"),
    "triton": Apart(programs=(), packages="tritonclient"),
    "node": Node(programs=(), packages=""),
    "ray": Extra(programs=(), packages="ray"),
    "data": Extra(programs=(), packages="sentence_transformers"),
    "mount": Mount(programs=(), packages=""),
}
SLOW = "slow"


def pytest_addoption(parser: pytest.Parser) -> None:
    options = parser.getgroup("what tests need")
    options.addoption("--quick", action="store_true", help="leave out the tests of more than ten seconds")
    options.addoption("--need-all", action="store_true", help="a missing program is an error, as in CI")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_left_out] = Counter()
    missing = [name for name, group in GROUPS.items() if not group.here()]
    if config.getoption("need_all") and missing:
        raise pytest.UsageError(f"--need-all was given, and these are missing: {_told(missing)}")


def pytest_report_header(config: pytest.Config) -> str | None:
    names = list(_absent(config))
    return f"left out here: {_told(names)}" if names else None


@pytest.hookimpl(trylast=True)  # after -k and -m, so that what they drop is not counted
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    absent, kept, dropped = _absent(config), [], []
    for item in items:
        lacks = [name for name in _needed(item) if name in absent]
        (dropped if lacks else kept).append(item)
        config.stash[_left_out].update(lacks[:1])
    # Files with slow tests first: where processes share the files, none is left with a long one at the end.
    slow = {item.path for item in kept if item.get_closest_marker(SLOW)}
    items[:] = sorted(kept, key=lambda item: item.path not in slow)
    if dropped:
        config.hook.pytest_deselected(items=dropped)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    os.environ["PATH"] = _PATH if set(_needed(item)) & set(GROUPS) else _hidden_path(item.config)
    return (yield)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput[_SENT] = dict(config.stash[_left_out])
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and config.stash[_left_out]:
        session.exitstatus = pytest.ExitCode.OK  # whatever was asked for is left out here


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of pytest-xdist has ended; each of them has collected everything."""
    node.config.stash[_left_out] |= Counter(getattr(node, "workeroutput", {}).get(_SENT, {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if counts := config.stash[_left_out]:
        terminalreporter.write_line(f"left out: {_told(counts)}", yellow=True)


def stand_in(folder: Path, path: str = _PATH) -> str:
    """A PATH without the programs of the groups: links to everything else, where a folder has one."""
    programs = {program for group in GROUPS.values() for program in group.programs}
    places = []
    for number, place in enumerate(filter(os.path.isdir, path.split(os.pathsep))):
        names = set(os.listdir(place))
        if names & programs:
            links = folder / str(number)
            links.mkdir(parents=True)
            for name in names - programs:
                (links / name).symlink_to(Path(place).absolute() / name)
            place = str(links)
        places.append(place)
    return os.pathsep.join(places)


def _hidden_path(config: pytest.Config) -> str:
    if _hidden not in config.stash:
        folder = Path(tempfile.mkdtemp(prefix="amn-path-"))
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        config.stash[_hidden] = stand_in(folder)
    return config.stash[_hidden]


def _needed(item: pytest.Item) -> Iterator[str]:
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            if name not in GROUPS:
                raise pytest.UsageError(f"{item.nodeid} needs {name!r}; known are {', '.join(GROUPS)}")
            yield name
    if item.get_closest_marker(SLOW):
        yield SLOW


def _absent(config: pytest.Config) -> list[str]:
    absent = [name for name, group in GROUPS.items() if not group.here()]
    return [*absent, SLOW] if config.getoption("quick") else absent


def _told(names: list[str] | Counter[str]) -> str:
    """Names, each with its number of tests, where it is known, and what brings them."""
    counts = names if isinstance(names, Counter) else {}
    words = {name: f"{name} {counts[name]} tests" if name in counts else name for name in names}
    slow = words.pop(SLOW, "")
    extras = {name: group for name, group in GROUPS.items() if name in words and isinstance(group, Extra)}
    told = [f"{words.pop(name)} ({group.brought_by(name)})" for name, group in extras.items()]
    if words:
        packages = " ".join(GROUPS[name].packages for name in words)
        told.insert(0, f"{', '.join(words.values())} (make test-programs, which installs {packages})")
    return "; ".join([*told, f"{slow} (make test-all)"] if slow else told)


if __name__ == "__main__":
    print(stand_in(Path(sys.argv[1])))
