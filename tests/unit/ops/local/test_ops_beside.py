"""A process beside the workers: started again when it ends, and what `amn up` says of it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import wait_until

from ops.commands.up import _look_after
from ops.local import beside as beside_module
from ops.local.beside import Beside


def beside(log: Path, monkeypatch: pytest.MonkeyPatch, code: str, name: str = "") -> Beside:
    monkeypatch.setattr(beside_module, "our_python", lambda *_: [sys.executable, "-c", code])
    return Beside(name, [], "unix:///nothing", log)


def test_a_dead_process_is_started_again_but_not_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = beside(tmp_path / "log", monkeypatch, "import time; time.sleep(60)")
    first = one.child.pid
    os.kill(first, signal.SIGKILL)
    one.poll()
    assert one.child.pid == first
    monkeypatch.setattr(beside_module, "_PAUSE_S", 0.0)
    assert wait_until(lambda: one.poll() or one.child.pid != first)
    one.stop()
    one.stop()
    assert not one.child.alive


def test_one_that_ends_is_named_with_its_last_error_and_the_same_again_is_no_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside_module, "_PAUSE_S", 0.0)
    code = "import sys; print('loading'); print('amn: no disk'); print('bye'); sys.exit(3)"
    one = beside(tmp_path / "log", monkeypatch, code, "the judge")
    assert wait_until(lambda: one.poll() == "the judge ended with code 3: no disk")
    with pytest.raises(AssertionError):
        wait_until(one.poll, 1)
    one.stop()


def test_what_died_is_started_again_once_the_system_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ops.commands.up._CHECK_S", 0)
    found: list[OSError | int] = [OSError(28, "No space left on device")] * 3 + [1]
    stopping = threading.Event()

    def revive() -> Iterator[str]:
        one = found.pop(0)
        if isinstance(one, OSError):
            raise one
        stopping.set()
        yield "it was started again"

    stack: Any = SimpleNamespace(revive=revive)
    _look_after(stack, stopping, threading.Event())
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said[:1]] == ["cannot start again what died"]
    assert said[1:] == ["it was started again"]
