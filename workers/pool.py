"""Keeps N worker processes of each kind alive: real processes, spawned, never forked."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import structlog

from amn.policy import DEFAULT
from workers.child import WorkerProcess, our_environment, our_python
from workers.errors import NotReady
from workers.rollout import Rollout, Slot, Version
from workers.served import Served, look, pin
from workers.settings import artifacts_root

_LOG = structlog.get_logger("amn.pool")
#: A child that dies sooner than this after its start did not start well: wait longer each time.
_STEADY_S = 5.0
_PAUSE_S_MAX = 10.0
#: How often the links are looked at.
_LOOK_S = 1.0
#: A worker that was replaced finishes its batch within this, or its lease does the rest.
_LEAVE_S_MAX = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """What every child is told.

    Attributes:
        url: Server address; goes to the children by environment, never on a command line.
        queue: Queue name.    policy: Escalation policy of the AMN workers.
        artifacts: Folder of models and banks.
        lease_ms, sample_rate: As in `workers.settings`.
        fallback_entries_max, fallback_bytes_max: The same; None for the defaults there.
        log_level: Of the children.    log_file: Where their logs go; None for standard error.
    """

    url: str = field(repr=False)
    queue: str = "main"
    policy: str = DEFAULT
    artifacts: Path = field(default_factory=artifacts_root)
    lease_ms: int = 3_000
    sample_rate: float = 0.05
    fallback_entries_max: int | None = None
    fallback_bytes_max: int | None = None
    log_level: str = "warning"
    log_file: Path | None = None

    def command(self, kind: str, artifacts: Path) -> list[str]:
        """The child's command line."""
        words = our_python("workers", kind, "--queue", self.queue)
        words += ["--artifacts", str(artifacts), "--log-level", self.log_level]
        # Workers of a pool that was killed stop by themselves.
        words += ["--parent", str(os.getpid())]
        words += ["--lease-ms", str(self.lease_ms)]
        if kind != "shadow":
            words += ["--policy", self.policy]
        if kind == "amn":
            words += ["--sample-rate", str(self.sample_rate)]
            for name in ("fallback_entries_max", "fallback_bytes_max"):
                limit = getattr(self, name)
                words += [] if limit is None else [f"--{name.replace('_', '-')}", str(limit)]
        return words

    def environment(self) -> dict[str, str]:
        """The child's environment: one thread per numeric library, since a process has one core."""
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        return our_environment(**one_thread, REDIS_URL=self.url, PYTHONUNBUFFERED="1")


class Pool:
    """A fixed number of workers of each kind: replaced when they die, and when a link moves.

    Attributes:
        restarts: Children that were started again after they died.
    """

    def __init__(self, counts: Mapping[str, int], settings: PoolSettings) -> None:
        self.restarts = 0
        self._counts = dict(counts)
        self._settings = settings
        self._slots: list[Slot] = []
        self._leaving: list[WorkerProcess] = []
        self._rollout = Rollout(self._slots, self._spawn, self._dismiss)
        self._wanted = Version(Served())
        self._looked_at_s = 0.0
        self._pause_s: dict[str, float] = {}
        self._draining = False
        self._log: IO[bytes] | None = None
        self._pins: tempfile.TemporaryDirectory[str] | None = None
        self._pinned: dict[Served, Path] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        """Spawns every child; returns before they are ready."""
        if self._settings.log_file is not None:
            self._log = self._settings.log_file.open("ab")
        self._pins = tempfile.TemporaryDirectory(prefix="amn-pool-", ignore_cleanup_errors=True)
        self._wanted = Version(look(self._settings.artifacts))
        with self._lock:
            for kind, count in self._counts.items():
                for _ in range(count):
                    self._slots.append(Slot(kind, self._spawn(kind, self._wanted), self._wanted))

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Returns when every child has loaded, checked and warmed its model.

        Raises:
            NotReady: A child ended instead, or the time is over.
        """
        give_up_at_s = time.monotonic() + timeout_s
        for child in [slot.child for slot in self._slots]:
            while not child.ready.wait(0.02):
                if not child.alive:
                    raise NotReady(
                        f"the {child.kind} worker ended with code {child.code} before it was "
                        f"ready; its message is above{self._where()}"
                    )
                if time.monotonic() > give_up_at_s:
                    raise NotReady(
                        f"the {child.kind} worker was not ready within {timeout_s:g} s{self._where()}"
                    )

    def pids(self) -> dict[str, list[int]]:
        """Process ids of the living children by kind, those that come and go included."""
        found: dict[str, list[int]] = {kind: [] for kind in self._counts}
        for child in self._children():
            if child.alive:
                found[child.kind].append(child.pid)
        return found

    def restart(self) -> None:
        """Asks for a rolling restart: `poll` replaces every worker, one at a time."""
        with self._lock:
            self._wanted = replace(self._wanted, restart=self._wanted.restart + 1)

    @property
    def swaps(self) -> int:
        """Workers that were replaced while they ran."""
        return self._rollout.swaps

    @property
    def settled(self) -> bool:
        """Whether every worker serves what the links name, and none is being replaced."""
        with self._lock:
            return self._rollout.settled(self._wanted) and not self._leaving

    def poll(self) -> None:
        """Starts dead children again, and goes on with a replacement that is due."""
        with self._lock:
            if self._draining:
                return
            for slot in self._slots:
                if not slot.child.alive and not self._rollout.replaces(slot):
                    self._revive(slot)
            self._see_off()
            if time.monotonic() - self._looked_at_s > _LOOK_S:
                self._looked_at_s = time.monotonic()
                self._wanted = replace(self._wanted, served=look(self._settings.artifacts))
            self._rollout.turn(self._wanted)

    def watch(self) -> None:
        """Polls in a thread until `drain`."""

        def run() -> None:
            while not self._draining:
                self.poll()
                time.sleep(0.2)

        threading.Thread(target=run, name="amn-pool", daemon=True).start()

    def drain(self, deadline_s: float = 10.0) -> None:
        """SIGTERM to all, waits, then SIGKILL to who is left. Idempotent."""
        with self._lock:
            self._draining = True
        children = self._children()
        for child in children:
            child.leave()
        give_up_at_s = time.monotonic() + deadline_s
        for child in children:
            if not child.wait(give_up_at_s - time.monotonic()):
                _LOG.warning("worker_killed_at_deadline", kind=child.kind, pid=child.pid)
                child.kill()
            child.close()
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._pins is not None:
            self._pins.cleanup()
            self._pins = None

    def _children(self) -> list[WorkerProcess]:
        coming = [] if self._rollout.successor is None else [self._rollout.successor]
        return [*(slot.child for slot in self._slots), *coming, *self._leaving]

    def _revive(self, slot: Slot) -> None:
        """Starts a dead worker again, with a growing pause for those that die young.

        It serves what it served before: whether that which is wanted now holds is not known yet.
        """
        old, kind = slot.child, slot.kind
        pause_s = self._pause_s.get(kind, 0.0)
        if old.age_s < pause_s:
            return
        self._pause_s[kind] = 0.0 if old.age_s > _STEADY_S else min(2 * pause_s + 0.5, _PAUSE_S_MAX)
        _LOG.warning("worker_died", kind=kind, pid=old.pid, code=old.code)
        old.close()
        slot.child = self._spawn(kind, slot.version)
        self.restarts += 1

    def _dismiss(self, child: WorkerProcess) -> None:
        child.leave()
        self._leaving.append(child)

    def _see_off(self) -> None:
        for child in list(self._leaving):
            if child.leaving_s > _LEAVE_S_MAX:
                _LOG.warning("worker_killed_at_deadline", kind=child.kind, pid=child.pid)
                child.kill()
            if not child.alive:
                child.close()
                self._leaving.remove(child)

    def _spawn(self, kind: str, version: Version) -> WorkerProcess:
        settings, served = self._settings, version.served
        assert self._pins is not None
        folder = self._pinned.setdefault(served, Path(self._pins.name) / str(len(self._pinned)))
        # Each time anew: whoever tidies up temporary folders may have been there since.
        command = settings.command(kind, pin(served, settings.artifacts, folder))
        return WorkerProcess(kind, command, settings.environment(), self._log)

    def _where(self) -> str:
        return f" (log: {self._settings.log_file})" if self._settings.log_file else ""
