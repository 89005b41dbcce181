"""A child process: kept alive, stopped, and gone with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ops.commands.up import _look_after
from ops.local import child as child_module
from ops.local.child import Child


def wait_until(condition: object, timeout_s: float = 10.0) -> bool:
    give_up_at_s = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at_s:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def sleeper(log: Path, code: str = "import time; time.sleep(60)") -> Child:
    return Child([sys.executable, "-c", code], dict(os.environ), log)


def test_a_dead_child_is_started_again_but_not_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = sleeper(tmp_path / "log")
    child.start()
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    child.poll()
    assert child.pid == first
    monkeypatch.setattr(child_module, "_PAUSE_S", 0.0)
    assert wait_until(lambda: child.poll() or child.pid != first)
    child.stop()


def test_a_child_is_up_when_it_says_so_and_one_that_died_is_named_with_its_last_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "_PAUSE_S", 0.0)
    log = tmp_path / "log"
    log.write_text("amn: of another process\n")
    good = sleeper(log, "import time; from ops.local.child import tell_ready; tell_ready(); time.sleep(60)")
    good.start()
    assert good.came_up(20)
    good.stop()
    bad = sleeper(log, "import sys; print('loading'); print('amn: no disk'); print('bye'); sys.exit(3)")
    bad.name = "the judge"
    bad.start()
    assert not bad.came_up(20)
    assert wait_until(lambda: bad.poll() == "the judge ended with code 3: no disk")
    assert not wait_until(bad.poll, 1)  # the same again is no news
    bad.stop()


def test_a_child_that_ignores_the_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "_STOP_S_MAX", 0.2)
    log = tmp_path / "log"
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    child = sleeper(log, code)
    child.start()
    assert wait_until(lambda: "on" in log.read_text())
    child.stop()
    child.stop()
    assert child.pid is None


@pytest.mark.parametrize("loads_s", [0, 3], ids=["at work", "while it was loading"])
def test_a_child_ends_when_its_parent_is_killed(loads_s: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    inner = (
        f"import os, time; print(os.getpid(), flush=True); time.sleep({loads_s})\n"
        "from ops.local.child import follow_parent; follow_parent(); time.sleep(60)"
    )
    outer = (
        "import os, sys, time; from pathlib import Path; from ops.local.child import Child\n"
        f"Child([sys.executable, '-c', {inner!r}], dict(os.environ), Path({str(log)!r})).start()\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", outer]) as parent:
        assert wait_until(lambda: log.exists() and log.read_text().strip())
        pid = int(log.read_text())
        parent.kill()
        parent.wait(10)

    def gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{pid}/stat")
        return state.exists() and ") Z " in state.read_text()

    assert wait_until(gone)


def test_what_died_is_started_again_once_the_system_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ops.commands.up._LOOK_S", 0)
    found: list[OSError | int] = [OSError(28, "No space left on device")] * 3 + [1]
    stopping = threading.Event()

    def poll() -> int:
        one = found.pop(0)
        if isinstance(one, OSError):
            raise one
        stopping.set()
        return one

    stack: Any = SimpleNamespace(server=SimpleNamespace(poll=poll, log_path=tmp_path / "server.log"))
    _look_after(stack, [], stopping, threading.Event())
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said[:1]] == ["cannot start again what died"]
    assert len(said) == 2
    assert "(code 1) and was started again" in said[1]
