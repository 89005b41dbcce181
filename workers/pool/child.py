"""A child process of ours: it says when it is ready, leaves when it is told to, and follows its parent."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from workers.pulse import PIPE

#: The folder of our packages.
_ROOT = Path(__file__).resolve().parents[2]
_FOLLOWED = "AMN_FOLLOW_PARENT"
_CHECK_S = 1.0
_LEAVE_S_MAX = 10.0
#: Most that is read of a log in which many processes write.
_REASON_BYTES_MAX = 64 * 1024


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


class Child:
    """A spawned process, in a process group of its own: Ctrl-C is for the parent, which then drains.

    The session stays one, since Linux weighs nice values only within a session.

    Attributes:
        name: Kind of worker, or another name for people.
        started_at_s: Monotonic.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path | None = None
    ) -> None:
        self.name = name
        self.started_at_s = time.monotonic()
        self._told_at_s: float | None = None
        self._beat_at_s = 0.0
        self._log = log
        with contextlib.ExitStack() as undo:
            stream = None if log is None else undo.enter_context(log.open("ab"))
            self._log_began = 0 if stream is None else stream.tell()
            self._ready: int | None
            self._ready, told = os.pipe()
            undo.callback(os.close, told)
            self._said_ready = False
            try:
                self._process = subprocess.Popen(
                    command,
                    env={**environment, _FOLLOWED: str(os.getpid()), PIPE: str(told)},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL if stream is None else stream,
                    stderr=stream,
                    process_group=0,
                    pass_fds=(told,),
                )
            except BaseException:
                self._close()
                raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """True while it runs."""
        return self.code is None

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

    def is_ready(self, timeout_s: float = 0.0) -> bool:
        """Waits until it says that its work begins, or ends; true if it said so."""
        if not self._said_ready and self._heard(timeout_s) and not self._said_ready:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)  # so that its code is known
        return self._said_ready

    def silent_s(self) -> float:
        """Takes its signs; returns the time since the last one.

        It is 0 before it is ready, when it gives none any more on purpose, and when it ended.
        """
        while self._heard(0):
            pass
        return time.monotonic() - self._beat_at_s if self._said_ready and self._ready is not None else 0.0

    def _heard(self, timeout_s: float) -> bool:
        """Takes signs from the pipe; true if there were some, or its end."""
        if self._ready is None or not select.select([self._ready], [], [], max(timeout_s, 0))[0]:
            return False
        if os.read(self._ready, 4096):
            self._said_ready, self._beat_at_s = True, time.monotonic()
        else:  # the pipe of one that ended
            self._close()
        return True

    def exit_reason(self) -> str:
        """Return its name, its code or signal, and the last error in its log."""
        code = self.code
        if code is not None and code < 0:
            return f"{self.name} was killed by signal {-code}"
        ended = "does not answer" if code is None else f"ended with code {code}"
        return f"{self.name} {ended}: {self._last_error()}"

    def leave(self) -> None:
        """SIGTERM: finish what is at hand, hand back the rest."""
        if self._told_at_s is None:
            self._told_at_s = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def end(self, timeout_s: float) -> bool:
        """Waits for its end, and kills it when that does not come in time; true when it came."""
        self._close()
        try:
            self._process.wait(max(timeout_s, 0.01))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        return True

    def _last_error(self) -> str:
        if self._log is None:
            return "its message is above"
        with self._log.open("rb") as log:
            log.seek(max(self._log_began, log.seek(0, os.SEEK_END) - _REASON_BYTES_MAX))
            lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines()]
        lines = [line for line in lines if line] or ["it said nothing"]
        errors = [line for line in lines if line.startswith(("amn: ", "Error: "))]
        return (errors or lines)[-1].removeprefix("amn: ").removeprefix("Error: ")

    def _close(self) -> None:
        if self._ready is not None:
            os.close(self._ready)
            self._ready = None


def parent_pid() -> int:
    """In the child: the process that started it; 0 in a process that no `Child` is."""
    return int(os.environ.pop(_FOLLOWED, "0"))  # for this process, and none that it starts


def follow_parent() -> None:
    """In the child: ends this process when the one that started it is gone, also by SIGKILL.

    A parent that died while this process was loading is gone too.
    """
    if not (parent := parent_pid()):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_CHECK_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_LEAVE_S_MAX)
        os._exit(1)  # the work at hand does not end: the server that it needs is gone too

    threading.Thread(target=watch, name="amn-follow-parent", daemon=True).start()
