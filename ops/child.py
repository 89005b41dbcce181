"""One child process that is kept alive, stopped gently, and does not outlive its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_FOLLOWED = "AMN_FOLLOW_PARENT"
_LOOK_S = 1.0
_LEAVE_S_MAX = 10.0
_PAUSE_S = 5.0
_STOP_S_MAX = 15.0


class Child:
    """Starts a command again when it ends by itself, at most once in `_PAUSE_S`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at_s = 0.0

    @property
    def pid(self) -> int | None:
        """Its process id, or None before the start."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Spawns it, in a process group of its own: Ctrl-C is for the parent, which then drains."""
        self._started_at_s = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment | {_FOLLOWED: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def poll(self) -> None:
        """Starts it again when it is dead."""
        if self._process is not None and self._process.poll() is None:
            return
        if time.monotonic() - self._started_at_s > _PAUSE_S:
            self.start()

    def stop(self) -> None:
        """SIGTERM, a grace time, then SIGKILL. Idempotent."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def follow_parent() -> None:
    """In the child: ends this process when the one that started it is gone, also by SIGKILL.

    Does nothing in a process that no `Child` started. A parent that died while this process was
    loading is gone too.
    """
    parent = os.environ.pop(_FOLLOWED, None)  # for this process, and none that it starts
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_LEAVE_S_MAX)
        os._exit(1)  # the work at hand does not end: the server that it needs is gone too

    threading.Thread(target=watch, name="amn-follow-parent", daemon=True).start()
