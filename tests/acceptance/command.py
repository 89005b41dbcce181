"""The command `amn` as a person would run it, in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
from waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "artifacts" / "sample" / "sequences.npz"
MARK = "AMN_TEST_MARK"


@dataclass(frozen=True)
class Ended:
    """What a finished command left."""

    code: int
    out: str
    err: str


class Amn:
    """Runs `amn` in one folder; every process that it starts carries a mark in its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.environment = {**os.environ, MARK: self.mark, "AMN_ARTIFACTS": artifacts()}
        self.environment.pop("REDIS_URL", None)
        self.environment.pop("AMN_QUEUE", None)

    def __call__(self, *arguments: object, timeout_s: float = 100, **environment: str) -> Ended:
        ended = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Starts it in the background, with its output in `up.log`."""
        with (self.folder / "up.log").open("w") as log:
            return subprocess.Popen(
                self.command(*arguments),
                cwd=self.folder,
                env=self.environment | {"PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-P", "-m", "ops.cli", *map(str, arguments)]  # -P: as the command `amn`

    def processes(self) -> list[int]:
        """Processes that carry the mark (Linux only: elsewhere the test that asks is skipped)."""
        if not Path("/proc/self/environ").exists():
            pytest.skip("needs /proc to look for processes left behind")
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                continue  # ended meanwhile
        return found

    def leaves_nothing(self) -> None:
        """Fails when a process is still there after a moment: a shell needs some milliseconds to go."""
        # A worker looks for its pool when it has loaded its model: on a loaded machine that takes a while.
        wait_until(lambda: not self.processes(), 60)


def address(folder: Path) -> str:
    """Of the server of the `amn up` in this folder."""
    return str(json.loads((folder / "var" / "amn" / "service.json").read_text("utf-8"))["url"])


def artifacts() -> str:
    return os.environ.get("AMN_ARTIFACTS") or str(ROOT / "artifacts" / "lvm")
