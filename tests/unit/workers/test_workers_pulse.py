"""The pulse of a process: who hears it, and what ends one that gives none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from workers.pulse import Pulse


@pytest.fixture
def pulse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pulse:
    monkeypatch.setenv("AMN_PULSE_FILE", str(tmp_path / "pulse"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "systemd"))
    return Pulse(ends_itself=False)


def test_systemd_is_told_that_it_is_ready_and_then_of_each_beat(pulse: Pulse, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "systemd"))
        systemd.settimeout(5)
        pulse.ready()
        pulse.beat()
        assert [systemd.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
    pulse.beat()  # nobody listens any more: no reason to fail


def test_a_probe_sees_the_age_of_the_last_beat(pulse: Pulse, tmp_path: Path) -> None:
    assert not (tmp_path / "pulse").exists()
    pulse.ready()
    os.utime(tmp_path / "pulse", (1, 1))
    pulse.beat()
    assert time.time() - (tmp_path / "pulse").stat().st_mtime < 60


def test_a_wait_beats_and_ends_when_it_is_time_or_when_told_to_stop(pulse: Pulse, tmp_path: Path) -> None:
    stopping = threading.Event()
    began_s = time.monotonic()
    assert not pulse.wait(stopping, 0.05)
    assert time.monotonic() - began_s >= 0.05
    assert (tmp_path / "pulse").exists()
    threading.Timer(0.05, stopping.set).start()
    assert pulse.wait(stopping, 60)
    assert time.monotonic() - began_s < 30


def test_a_forked_child_s_beats_are_not_heard(pulse: Pulse, tmp_path: Path) -> None:
    if not (child := os.fork()):
        pulse.beat()
        os._exit(0)
    os.waitpid(child, 0)
    assert not (tmp_path / "pulse").exists()


def test_a_process_that_gives_no_sign_for_too_long_ends_and_one_on_its_way_out_does_not() -> None:
    code = "import time; from workers.pulse import Pulse; pulse = Pulse(); pulse.ready(); {}; time.sleep(1.5)"
    ends = {
        done: subprocess.run(
            [sys.executable, "-c", code.format(done)],
            env=os.environ | {"AMN_STALL_MS": "200"},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        for done in ("pass", "pulse.close()")
    }
    assert ends["pass"].returncode == 1
    assert "Timeout" in ends["pass"].stderr
    assert ends["pulse.close()"].returncode == 0
