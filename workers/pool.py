"""Keeps N worker processes of each kind alive: real processes, spawned, never forked."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import structlog

from workers.errors import NotReady
from workers.settings import artifacts_root

_LOG = structlog.get_logger("amn.pool")
#: A child that dies sooner than this after its start did not start well: wait longer each time.
_STEADY_S = 5.0
_PAUSE_S_MAX = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """What every child is told.

    Attributes:
        url: Server address; goes to the children by environment, never on a command line.
        queue: Queue name.    policy: Escalation policy of the AMN workers.
        artifacts: Folder of models and banks.
        lease_ms, sample_rate: As in `workers.settings`.
        log_level: Of the children.    log_file: Where their logs go; None for standard error.
    """

    url: str
    queue: str = "main"
    policy: str = "budgeted"
    artifacts: Path = field(default_factory=artifacts_root)
    lease_ms: int = 3_000
    sample_rate: float = 0.05
    log_level: str = "warning"
    log_file: Path | None = None

    def command(self, kind: str) -> list[str]:
        """The child's command line."""
        words = [sys.executable, "-m", "workers", kind, "--queue", self.queue]
        words += ["--artifacts", str(self.artifacts), "--log-level", self.log_level]
        # Workers of a pool that was killed stop by themselves.
        words += ["--parent", str(os.getpid())]
        words += ["--lease-ms", str(self.lease_ms)]
        if kind == "amn":
            words += ["--policy", self.policy, "--sample-rate", str(self.sample_rate)]
        return words

    def environment(self) -> dict[str, str]:
        """The child's environment: one thread per numeric library, since a process has one core."""
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        return {**os.environ, **one_thread, "REDIS_URL": self.url, "PYTHONUNBUFFERED": "1"}


@dataclass(slots=True)
class _Child:
    kind: str
    process: subprocess.Popen[bytes]
    started_at_s: float
    ready: threading.Event


class Pool:
    """A fixed number of workers of each kind.

    Attributes:
        restarts: Children that were started again after they died.
    """

    def __init__(self, counts: Mapping[str, int], settings: PoolSettings) -> None:
        self.restarts = 0
        self._counts = dict(counts)
        self._settings = settings
        self._children: list[_Child] = []
        self._pause_s: dict[str, float] = {}
        self._draining = False
        self._log: IO[bytes] | None = None
        self._watcher: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Spawns every child; returns before they are ready."""
        if self._settings.log_file is not None:
            self._log = self._settings.log_file.open("ab")
        with self._lock:
            for kind, count in self._counts.items():
                for _ in range(count):
                    self._children.append(self._spawn(kind))

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Returns when every child has loaded, checked and warmed its model.

        Raises:
            NotReady: A child ended instead, or the time is over.
        """
        give_up_at_s = time.monotonic() + timeout_s
        for child in list(self._children):
            while not child.ready.wait(0.02):
                if child.process.poll() is not None:
                    raise NotReady(
                        f"the {child.kind} worker ended with code {child.process.returncode} before it was "
                        f"ready; its message is above{self._where()}"
                    )
                if time.monotonic() > give_up_at_s:
                    raise NotReady(
                        f"the {child.kind} worker was not ready within {timeout_s:g} s{self._where()}"
                    )

    def pids(self) -> dict[str, list[int]]:
        """Process ids of the living children by kind."""
        found: dict[str, list[int]] = {kind: [] for kind in self._counts}
        for child in self._children:
            if child.process.poll() is None:
                found[child.kind].append(child.process.pid)
        return found

    def poll(self) -> None:
        """Starts dead children again, with a growing pause for those that die young."""
        with self._lock:
            if self._draining:
                return
            for i, child in enumerate(self._children):
                if child.process.poll() is None:
                    continue
                age_s = time.monotonic() - child.started_at_s
                pause_s = self._pause_s.get(child.kind, 0.0)
                if age_s < pause_s:
                    continue
                steady = age_s > _STEADY_S
                self._pause_s[child.kind] = 0.0 if steady else min(2 * pause_s + 0.5, _PAUSE_S_MAX)
                _LOG.warning(
                    "worker_died", kind=child.kind, pid=child.process.pid, code=child.process.returncode
                )
                _close_output(child)
                self._children[i] = self._spawn(child.kind)
                self.restarts += 1

    def watch(self) -> None:
        """Polls in a thread until `drain`."""

        def run() -> None:
            while not self._draining:
                self.poll()
                time.sleep(0.2)

        self._watcher = threading.Thread(target=run, name="amn-pool", daemon=True)
        self._watcher.start()

    def drain(self, deadline_s: float = 10.0) -> None:
        """SIGTERM to all, waits, then SIGKILL to who is left. Idempotent."""
        with self._lock:
            self._draining = True
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGTERM)
        give_up_at_s = time.monotonic() + deadline_s
        for child in self._children:
            try:
                child.process.wait(max(give_up_at_s - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                _LOG.warning("worker_killed_at_deadline", kind=child.kind, pid=child.process.pid)
                child.process.kill()
                child.process.wait()
            _close_output(child)
        if self._log is not None:
            self._log.close()
            self._log = None

    def _spawn(self, kind: str) -> _Child:
        process = subprocess.Popen(
            self._settings.command(kind),
            env=self._settings.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            process_group=0,  # Ctrl-C goes to the parent, which drains; the session stays one, since
            # Linux weighs nice values only within a session
        )
        ready = threading.Event()
        threading.Thread(target=_wait_for_ready, args=(process, ready), daemon=True).start()
        return _Child(kind, process, time.monotonic(), ready)

    def _where(self) -> str:
        return f" (log: {self._settings.log_file})" if self._settings.log_file else ""


def _close_output(child: _Child) -> None:
    if child.process.stdout is not None:
        child.process.stdout.close()


def _wait_for_ready(process: subprocess.Popen[bytes], ready: threading.Event) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError, OSError):  # closed by drain
        for line in process.stdout:
            if line.strip() == b"ready":
                ready.set()
