"""The README's client example, run as it stands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from command import ROOT, Amn
from documents import blocks
from servers import free_port
from waiting import wait_until


def test_the_clients_five_lines_run_on_the_port_and_print_an_answer(amn: Amn) -> None:
    """Word for word: the command, one of the lines that it prints, in a shell, and the client."""
    [example] = [block.text for block in blocks("README.md", "python")]
    port = free_port()
    process = amn.start("up", "--workers", 1, "--port", port)
    log = amn.folder / "up.log"
    wait_until(lambda: "Ctrl-C drains" in log.read_text() or process.poll() is not None)
    exports = re.findall(r"^export REDIS_URL=.*$", log.read_text(), re.MULTILINE)
    assert len(exports) == 2
    for export in exports:
        ended = subprocess.run(
            ["sh", "-c", f'{export}\nexec "$0" -c "$1"', sys.executable, example],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name != "REDIS_URL"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        assert re.match(r"\(768,\) (amn|retrieval) 0\.\d+ \(", ended.stdout)
    _nobody_else_comes_in(amn, port)
    assert amn("doctor", "--alive", "amn").code == 0  # a command in the folder knows the password
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0


def _nobody_else_comes_in(amn: Amn, port: int) -> None:
    """Without the password the port does nothing; and no command line of a process shows it."""
    password = (amn.folder / "var" / "amn" / "password").read_text().strip()
    with redis.Redis(port=port) as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    lines = [Path(f"/proc/{pid}/cmdline") for pid in amn.processes()]
    assert len(lines) > 3
    assert not [line for line in lines if line.exists() and password.encode() in line.read_bytes()]
    files = [file for file in (amn.folder / "var" / "amn").rglob("*") if file.stat().st_mode & 0o077]
    assert files == []
