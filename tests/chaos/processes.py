"""Finds and ends what a run started, also when the run itself was killed.

Every process of a run carries a mark in its environment. The reaper is one of them: it waits for
the end of its input, which comes when the harness ends in whatever way, and kills who is left.
Linux only (/proc); elsewhere it finds nobody.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from .settings import ROOT

MARK = "AMN_CHAOS_MARK"


def marked(mark: str) -> list[int]:
    """Living processes that carry the mark, this one excepted."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # ended meanwhile, or not ours
            if f"{MARK}={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def kill_marked(mark: str) -> list[int]:
    """SIGKILL to all of them; returns who they were."""
    pids = marked(mark)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


class Reaper:
    """The harness's side: sets the mark, and holds the pipe."""

    def __init__(self, limit_s: float) -> None:
        self.mark = uuid.uuid4().hex
        os.environ[MARK] = self.mark
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.processes", self.mark, str(os.getpid()), str(limit_s)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def left_over(self) -> list[int]:
        """Processes of the run that still live."""
        return [pid for pid in marked(self.mark) if pid != self._process.pid]

    def close(self) -> None:
        """Lets it kill who is left, and ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        os.environ.pop(MARK, None)


def reap(mark: str, harness: int, limit_s: float) -> None:
    """Waits for the end of the input or of the time, then kills."""
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
        if not kill_marked(mark):
            return
        time.sleep(0.05)


if __name__ == "__main__":
    reap(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
