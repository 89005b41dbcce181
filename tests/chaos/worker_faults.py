"""Faults of workers: killed, told to leave, stopped beyond their lease, replaced in turn."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import redis

from producer.keys import Keys
from tests.deadly import DeadlyPoolSettings
from tests.needs import faketime
from workers.pool.pool import Pool

from ..servers import step_clock, stepping
from .recovery import Held, Kill, Recoveries, held_by
from .settings import Fault

_HOLDING_TRIES = 8
#: Name of the file that moves the workers' clock.
CLOCK = "worker-clock"
After = Callable[[float, Callable[[], None]], None]


class SteppedPoolSettings(DeadlyPoolSettings):
    """A pool of workers whose wall clock is in a file beside their log."""

    __slots__ = ()

    def command(self, kind: str, artifacts: Path) -> list[str]:
        assert self.log_file is not None
        variables = stepping(self.log_file.with_name(CLOCK), faketime()).items()
        words = DeadlyPoolSettings.command(self, kind, artifacts)
        return ["/usr/bin/env", *(f"{name}={value}" for name, value in variables), *words]


class WorkerFaults:
    """Each method injects one fault, and says what it did; "" when it found nobody to harm."""

    def __init__(
        self,
        pool: Pool,
        client: redis.Redis,
        recoveries: Recoveries,
        after: After,
        lease_ms: int,
        clock: Path,
    ) -> None:
        self._pool = pool
        self._client = client
        self._recoveries = recoveries
        self._after = after
        self._lease_s = lease_ms / 1000
        self._clock = clock
        self._stalled: set[int] = set()
        keys = Keys()
        self._streams = {"amn": keys.levels, "fallback": (keys.fallback,), "shadow": (keys.shadow,)}

    def kill_worker(self, fault: Fault) -> str:
        """SIGKILL, at a moment when it holds entries if there is one soon."""
        victim = self._victim(fault.choice)
        if victim is None:
            return ""
        kind, pid = victim
        held = self._caught_holding(kind, pid)
        signal_to(pid, signal.SIGKILL)
        self._recoveries.disturb(kind)
        helped = self._peer_works(kind, pid)
        self._recoveries.add(Kill(kind, held, time.monotonic(), clean=helped))
        return f"{kind} {pid}, which held {len(held)}"

    def term_worker(self, fault: Fault) -> str:
        """SIGTERM: it leaves in order."""
        victim = self._victim(fault.choice)
        if victim is None:
            return ""
        self._recoveries.disturb(victim[0])
        signal_to(victim[1], signal.SIGTERM)
        return f"{victim[0]} {victim[1]}"

    def stall_worker(self, fault: Fault) -> str:
        """Stopped for longer than its lease, then it goes on."""
        victim = self._victim(fault.choice)
        if victim is None:
            return ""
        lasts_s = self._lease_s * (1.2 + 1.8 * fault.extent)
        self._recoveries.disturb(victim[0])
        self._stall(victim[1])
        self._after(lasts_s, lambda: self._resume(victim[1]))
        return f"{victim[0]} {victim[1]} for {lasts_s:.2f} s"

    def worker_clock(self, fault: Fault) -> str:
        """The wall clock of every worker, up to two minutes ahead or behind."""
        offset_s = 240.0 * fault.extent - 120.0
        step_clock(self._clock, offset_s)
        return f"{offset_s:+.1f} s"

    def fill_fallback(self, fault: Fault) -> str:
        """Every fallback worker stopped, until escalations find their stream full."""
        lasts_s = 1.0 + 2.0 * fault.extent
        pids = self._pool.pids()["fallback"]
        self._recoveries.disturb("fallback")
        for pid in pids:
            self._stall(pid)
        self._after(lasts_s, lambda: [self._resume(pid) for pid in pids])
        return f"{len(pids)} workers stopped for {lasts_s:.2f} s" if pids else ""

    def rolling_restart(self, _: Fault) -> str:
        """Every worker replaced by a new one, in turn."""
        if not self._pool.settled:
            return ""
        self._pool.restart()
        return f"after {self._pool.swaps} swaps"

    def resume_all(self) -> None:
        """Nobody is stopped any more."""
        for pids in self._pool.pids().values():
            for pid in pids:
                self._resume(pid)

    def _victim(self, choice: float) -> tuple[str, int] | None:
        alive = [(kind, pid) for kind, pids in sorted(self._pool.pids().items()) for pid in pids]
        return alive[int(choice * len(alive))] if alive else None

    def _peer_works(self, kind: str, pid: int) -> bool:
        """Whether another worker of the kind is ready to take over: loaded, and not stopped."""
        with contextlib.suppress(redis.RedisError, OSError):
            alive = set(self._pool.pids()[kind]) - self._stalled - {pid}
            prefix = Keys().worker(f"{kind}-")
            ready = {
                int(key.split(b"-")[-2]) for key in self._client.scan_iter(match=prefix + "*", count=5000)
            }
            return bool(alive & ready)
        return False

    def _caught_holding(self, kind: str, pid: int) -> list[Held]:
        for _ in range(_HOLDING_TRIES):
            signal_to(pid, signal.SIGSTOP)
            held: list[Held] = []
            with contextlib.suppress(redis.RedisError, OSError):
                held = held_by(self._client, self._streams[kind], pid)
            if held:
                return held
            signal_to(pid, signal.SIGCONT)
            time.sleep(0.007)
        return []

    def _stall(self, pid: int) -> None:
        self._stalled.add(pid)
        signal_to(pid, signal.SIGSTOP)

    def _resume(self, pid: int) -> None:
        self._stalled.discard(pid)
        signal_to(pid, signal.SIGCONT)


def signal_to(pid: int, number: signal.Signals) -> None:
    """One that is gone already feels nothing."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
