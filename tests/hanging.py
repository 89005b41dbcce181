"""The real command `amn`, whose loop hangs once a file appears.

Run as `python tests/hanging.py FILE DEED amn's words ...` in place of `python -m ops.cli ...`. `spin` keeps
this thread busy for ever, and `held` waits in native code and does not let the interpreter go.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ops.alerts.sender import Sender
from ops.app import run
from ops.drift.loop import Judge
from ops.known_jobs import KnownWorker
from ops.web.serve import _Server


def _spin() -> None:
    while True:
        pass


def _hold() -> None:
    libc = ctypes.PyDLL(None)
    while True:
        libc.sleep(3600)


def _hanging(once: Path, deed: Callable[[], None], step: Any) -> Any:
    def does(*words: Any, **named: Any) -> Any:
        if once.exists():
            deed()
        return step(*words, **named)

    return does


if __name__ == "__main__":
    file, what = Path(sys.argv[1]), {"spin": _spin, "held": _hold}[sys.argv[2]]
    steps = ((Judge, "turn"), (Sender, "tick"), (KnownWorker, "heartbeat"), (_Server, "on_tick"))
    for owner, name in steps:
        setattr(owner, name, _hanging(file, what, getattr(owner, name)))
    sys.exit(run(sys.argv[3:]))
