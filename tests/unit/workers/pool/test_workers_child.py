"""A child process: it says when it is ready, is stopped, and is gone with its parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

from workers.pool.child import Child


def started(log: Path, code: str, name: str = "") -> Child:
    return Child(name, [sys.executable, "-c", code], dict(os.environ), log)


def test_a_child_is_ready_when_it_says_so_and_one_that_died_is_named_with_its_last_error(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    log.write_text("amn: of another process\n")
    good = started(log, "import time; from workers.pulse import Pulse; Pulse().ready(); time.sleep(60)")
    assert good.is_ready(20)
    assert good.is_ready()
    good.leave()
    assert good.end(10)
    bad = started(log, "import sys; print('loading'); print('amn: no disk'); print('bye'); sys.exit(3)", "x")
    assert not bad.is_ready(20)
    assert bad.exit_reason() == "x ended with code 3: no disk"
    bad.end(0)


def test_a_child_that_ignores_the_stop_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    child = started(log, code, "stubborn")
    assert wait_until(lambda: "on" in log.read_text())
    child.leave()
    assert not child.end(0.2)
    assert child.end(0)  # a second stop does nothing
    assert (child.alive, child.code) == (False, -9)
    assert child.exit_reason() == "stubborn was killed by signal 9"


def test_a_child_that_cannot_be_started_leaves_no_pipe_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else []
    with pytest.raises(FileNotFoundError):
        Child("x", [str(tmp_path / "missing")], {}, tmp_path / "log")
    assert not before or len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("loads_s", [0, 3], ids=["at work", "while it was loading"])
def test_a_child_ends_when_its_parent_is_killed(loads_s: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    inner = (
        f"import os, time; print(os.getpid(), flush=True); time.sleep({loads_s})\n"
        "from workers.pool.child import follow_parent; follow_parent(); time.sleep(60)"
    )
    outer = (
        "import os, sys, time; from pathlib import Path; from workers.pool.child import Child\n"
        f"Child('x', [sys.executable, '-c', {inner!r}], dict(os.environ), Path({str(log)!r}))\n"
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
