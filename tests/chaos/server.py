"""The server under attack: an embedded Valkey with an append-only file, killed and restarted."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import redis

from ops.local.server import find_program
from tests.needs import faketime

from ..servers import step_clock, stepping

_START_S_MAX = 30.0


class ChaosServer:
    """One server, its data in `folder`; the same address through every restart.

    Args:
        steps: Its wall clock is moved by `step_clock`.
    """

    def __init__(self, folder: Path, fsync: str, *, steps: bool) -> None:
        self.socket = folder / "s"
        self.url = f"unix://{self.socket}"
        self.log = folder / "server.log"
        self._folder = folder
        self._fsync = fsync
        self._clock = folder / "server-clock"
        self._environment = {**os.environ, **stepping(self._clock, faketime())} if steps else None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Starts it on what its append-only file holds; returns the seconds until it answered."""
        began_at_s = time.monotonic()
        values = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "logfile": str(self.log),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes",
            "appendfsync": self._fsync,
            "maxmemory-policy": "noeviction",
            "auto-aof-rewrite-min-size": "128mb",
        }
        words = [word for name, value in values.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [str(find_program()), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._environment,
            start_new_session=True,
        )
        with self.client() as client:
            while not _answers(client):
                if self._process.poll() is not None:
                    raise RuntimeError(f"the server ended with code {self._process.returncode}: {self.log}")
                if time.monotonic() - began_at_s > _START_S_MAX:
                    raise RuntimeError(f"the server did not answer within {_START_S_MAX:g} s: {self.log}")
                time.sleep(0.01)
        return time.monotonic() - began_at_s

    def client(self) -> redis.Redis:
        """A plain client, with a short patience."""
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=3, retry=None)

    def step_clock(self, offset_s: float) -> None:
        """Its wall clock is so far from the true time, within a second from now on."""
        step_clock(self._clock, offset_s)

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def send(self, number: signal.Signals) -> None:
        """SIGSTOP and SIGCONT: a server that neither answers nor closes its connections."""
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        """Ends it. Idempotent."""
        if self._process is not None and self._process.poll() is None:
            self.kill()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except (redis.RedisError, OSError):
        return False
