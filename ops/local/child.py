"""One child process that is kept alive, stopped gently, and does not outlive its parent."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

_FOLLOWED, _READY = "AMN_FOLLOW_PARENT", "AMN_READY_FD"
_LOOK_S = 1.0
_LEAVE_S_MAX = 10.0
_PAUSE_S = 5.0
_STOP_S_MAX = 15.0


class Child:
    """Starts a command again when it ends by itself, at most once in `_PAUSE_S`.

    Attributes:
        name: What people call it.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, name: str = ""
    ) -> None:
        self.name = name
        self._command = list(command)
        self._environment = dict(environment)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at_s = 0.0
        self._log_began = 0
        self._ready: int | None = None
        self._named = ""

    @property
    def pid(self) -> int | None:
        """Its process id, or None before the start."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Spawns it, in a process group of its own: Ctrl-C is for the parent, which then drains."""
        self._started_at_s = time.monotonic()
        self._forget()
        self._ready, told = os.pipe()
        try:
            with self._log.open("ab") as log:
                self._log_began = log.tell()
                self._process = subprocess.Popen(
                    self._command,
                    env=self._environment | {_FOLLOWED: str(os.getpid()), _READY: str(told)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    process_group=0,
                    pass_fds=(told,),
                )
        finally:
            os.close(told)

    def came_up(self, timeout_s: float) -> bool:
        """Waits until it says that it works, or ends; whether it said so."""
        if self._ready is None or not select.select([self._ready], [], [], max(timeout_s, 0))[0]:
            return False
        return bool(os.read(self._ready, 1))  # the pipe of one that ended gives nothing

    def poll(self) -> str:
        """Starts it again when it is dead; why it ended, when that is news."""
        if self._process is not None and self._process.poll() is None:
            return ""
        if time.monotonic() - self._started_at_s <= _PAUSE_S:
            return ""
        said = self.last_words()
        self.start()
        news, self._named = said if said != self._named else "", said
        return news

    def last_words(self) -> str:
        """With what it ended: its code, and the last error in its log."""
        code = None if self._process is None else self._process.poll()
        with self._log.open("rb") as log:
            log.seek(self._log_began)
            lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines()]
        errors = [line for line in lines if line.startswith("amn: ")] or [line for line in lines if line]
        last = errors[-1].removeprefix("amn: ") if errors else "it said nothing"
        return f"{self.name} {'does not answer' if code is None else f'ended with code {code}'}: {last}"

    def stop(self) -> None:
        """SIGTERM, a grace time, then SIGKILL. Idempotent."""
        process, self._process = self._process, None
        self._forget()
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _forget(self) -> None:
        if self._ready is not None:
            os.close(self._ready)
            self._ready = None


def tell_ready() -> None:
    """In the child: what it needs is loaded and read, and the work begins."""
    if told := os.environ.pop(_READY, None):
        os.write(int(told), b"1")
        os.close(int(told))


def unless_ignored(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> None:
    """Installs a handler, but not for SIGHUP where that is ignored: `nohup` is to hold."""
    for number in numbers:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


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
