"""Finds and ends what a run started, also when the run itself was killed.

Every process of a run carries a mark in its environment. The reaper is one of them: it waits for
the end of its input, which comes when the harness ends in whatever way, and kills who is left.
Linux only (/proc); elsewhere it finds nobody.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from .settings import ROOT

MARK = "AMN_CHAOS_MARK"


def marked(mark: str, folder: Path) -> list[int]:
    """Living processes that carry the mark or name the run's folder, this one excepted.

    A server that sets its title overwrites its environment; its title names its socket.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or not ours
            environment = (path / "environ").read_bytes().split(b"\0")
            title = (path / "cmdline").read_bytes()
            is_server = title.split(b"\0")[0].split(b" ")[0].endswith(b"-server")
            if f"{MARK}={mark}".encode() in environment or (is_server and bytes(folder) in title):
                found.append(int(path.name))
    return [pid for pid in found if pid != os.getpid()]


def kill_marked(mark: str, folder: Path) -> list[int]:
    """SIGKILL to all of them; returns who they were."""
    pids = marked(mark, folder)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


class Reaper:
    """The harness's side: sets the mark, and holds the pipe."""

    def __init__(self, limit_s: float, folder: Path) -> None:
        self._folder = folder
        self.mark = uuid.uuid4().hex
        os.environ[MARK] = self.mark
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                f"{__package__}.processes",
                self.mark,
                str(os.getpid()),
                str(limit_s),
                folder,
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def left_over(self) -> list[int]:
        """Processes of the run that still live."""
        return [pid for pid in marked(self.mark, self._folder) if pid != self._process.pid]

    def close(self) -> None:
        """Lets it kill who is left, and ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        os.environ.pop(MARK, None)


def reap(mark: str, harness: int, limit_s: float, folder: Path) -> None:
    """Waits for the end of the input or of the time, then kills, and removes the run's folder."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ended, _, _ = select.select([sys.stdin], [], [], limit_s)
    if not ended:
        print(f"chaos: over its hard limit of {limit_s:g} s, ending it", file=sys.stderr)
        with contextlib.suppress(ProcessLookupError):
            os.kill(harness, signal.SIGTERM)  # it cleans up by itself, if it still can
        if not select.select([sys.stdin], [], [], 30)[0]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(harness, signal.SIGKILL)
    for _ in range(20):
        if not kill_marked(mark, folder):
            break
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)
    for path in Path("/dev/shm").glob("*faketime_*"):
        if not Path("/proc", path.name.rpartition("_")[2]).exists():
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    reap(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
