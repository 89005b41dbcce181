"""The pulse of a process of the service: it is ready, and then again and again its loop gets on.

Four may listen. The `Child` of the process that started it, by a pipe; systemd, where the unit asks for that
(`Type=notify`, `WatchdogSec=`); a probe, by the age of the file that AMN_PULSE_FILE names; and Python's own
watchdog in this process, which ends it when no sign was given for too long. That one needs no interpreter, so
that it ends a loop in native code as well, and whatever starts ended processes again does the rest: `restart:
unless-stopped` of a compose file ends nothing itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import threading
import time
from pathlib import Path

#: Variable with the descriptor of the pipe to the parent.
PIPE = "AMN_READY_FD"
_STALLS, _STALL_MS = 3, 20_000
_BEAT_S = 1.0


def silence_s_max() -> float:
    """Seconds without a sign after which a process hangs: three times AMN_STALL_MS, a minute by default."""
    return _STALLS * int(os.environ.get("AMN_STALL_MS") or _STALL_MS) / 1000


class Pulse:
    """Gives the signs of this process; a forked child's are not heard.

    Args:
        ends_itself: Whether Python's own watchdog ends this process; a worker winds up one of its own.
    """

    def __init__(self, *, ends_itself: bool = True) -> None:
        self._pid = os.getpid()
        self._limit_s = silence_s_max() if ends_itself else 0.0
        self._pipe = int(os.environ.pop(PIPE, "-1"))
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._file = os.environ.get("AMN_PULSE_FILE", "")

    def ready(self) -> None:
        """Says that what it needs is loaded and read, and that the work begins."""
        if self._pipe >= 0:
            os.set_blocking(self._pipe, False)  # a parent that does not read is no reason to wait
        self._tell(b"READY=1")
        self.beat()

    def beat(self) -> None:
        """Says that the loop gets on."""
        if os.getpid() != self._pid:
            return
        if self._pipe >= 0:
            with contextlib.suppress(OSError):  # nobody listens any more
                os.write(self._pipe, b"1")
        self._tell(b"WATCHDOG=1")
        if self._file:
            with contextlib.suppress(OSError):
                Path(self._file).touch()
        if self._limit_s:
            faulthandler.dump_traceback_later(self._limit_s, exit=True)

    def wait(self, stopping: threading.Event, length_s: float) -> bool:
        """Waits for so long, or until told to stop, and beats meanwhile; returns whether it is to stop."""
        until_s = time.monotonic() + length_s
        while not stopping.wait(max(min(_BEAT_S, until_s - time.monotonic()), 0)):
            self.beat()
            if time.monotonic() >= until_s:
                return False
        return True

    def close(self) -> None:
        """Ends the watch: what is left to do is the way out."""
        if self._limit_s and os.getpid() == self._pid:
            faulthandler.cancel_dump_traceback_later()

    def _tell(self, text: bytes) -> None:
        if self._address:
            name = self._address
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to_systemd:
                to_systemd.setblocking(False)
                to_systemd.sendto(text, "\0" + name[1:] if name.startswith("@") else name)
