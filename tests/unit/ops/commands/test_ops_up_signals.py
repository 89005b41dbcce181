"""SIGHUP to `amn up`: a rolling restart, unless it means that the terminal was closed."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
PROGRAM = """
import threading
from ops.commands.up import _stop_on_signals
stopping, again = threading.Event(), threading.Event()
_stop_on_signals(stopping, again)
print("up", flush=True)
while not (stopping.wait(0.05) or again.is_set()):
    pass
print("restart" if again.is_set() else "stop", flush=True)
"""


def start(terminal: int | None) -> subprocess.Popen[str]:
    """In a session of its own, with `terminal` as its controlling one."""

    def take() -> None:
        if terminal is not None:
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=take,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def ended(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=30)
    return out.strip()


def test_without_a_terminal_it_restarts_the_workers() -> None:
    process = start(None)
    process.send_signal(signal.SIGHUP)
    assert ended(process) == "restart"


@pytest.mark.parametrize(("close", "what"), [(False, "restart"), (True, "stop")])
def test_with_one_it_stops_when_that_was_closed(close: bool, what: str) -> None:
    ours, theirs = pty.openpty()
    process = start(theirs)
    os.close(theirs)
    if close:
        os.close(ours)  # the kernel sends SIGHUP by itself
    else:
        process.send_signal(signal.SIGHUP)  # somebody else does
    assert ended(process) == what
    if not close:
        os.close(ours)


def test_nohup_holds_when_the_terminal_is_closed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what a child inherits
    ours, theirs = pty.openpty()
    try:
        process = start(theirs)
    finally:
        signal.signal(signal.SIGHUP, before)
    os.close(theirs)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == "stop"


def test_the_other_signals_stop() -> None:
    process = start(None)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == "stop"
