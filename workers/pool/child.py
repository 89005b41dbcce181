"""One worker process, as its pool sees it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

#: The folder of our packages.
_ROOT = Path(__file__).resolve().parents[2]


def our_python(module: str, *words: str) -> list[str]:
    """The command line of a module of ours, whatever modules lie in the current folder."""
    return [sys.executable, "-P", "-m", module, *words]


def our_environment(**more: str) -> dict[str, str]:
    """The environment of a child of ours: what it imports is what this process imported."""
    found = {**os.environ, "PYTHONSAFEPATH": "1", **more}
    if "site-packages" not in _ROOT.parts and "dist-packages" not in _ROOT.parts:
        # A checkout, that this process may know by its current folder alone.
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    return found


class WorkerProcess:
    """A spawned worker.

    Attributes:
        kind: Of worker.
        started_at_s: Monotonic.
        ready: Set when it has loaded, checked and warmed its model.
    """

    def __init__(
        self, kind: str, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes] | None
    ) -> None:
        self.kind = kind
        self.started_at_s = time.monotonic()
        self.ready = threading.Event()
        self._told_at_s: float | None = None
        self._process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=0,  # Ctrl-C goes to the parent, which drains; the session stays one, since
            # Linux weighs nice values only within a session
        )
        try:
            threading.Thread(target=self._wait_for_ready, daemon=True).start()
        except RuntimeError:  # no more threads: nobody would know of this process
            self.kill()
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """True while it runs."""
        return self._process.poll() is None

    @property
    def code(self) -> int | None:
        """Its exit code; negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def age_s(self) -> float:
        """Since its start."""
        return time.monotonic() - self.started_at_s

    @property
    def leaving_s(self) -> float:
        """Since it was told to leave; 0 before."""
        return 0.0 if self._told_at_s is None else time.monotonic() - self._told_at_s

    def leave(self) -> None:
        """SIGTERM: finish what is at hand, hand back the rest."""
        if self._told_at_s is None:
            self._told_at_s = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> bool:
        """Waits for its end; true when that came within the time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(timeout_s, 0.01))
            return True
        return False

    def kill(self) -> None:
        """SIGKILL; the lease brings back what it held."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Lets go of its output; it must have ended."""
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _wait_for_ready(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError, OSError):  # closed by `close`
            for line in self._process.stdout:
                if line.strip() == b"ready":
                    self.ready.set()
