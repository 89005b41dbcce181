"""Does to the service what the schedule says."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable

import redis

from producer.keys import Keys
from workers.pool import Pool

from .poison import Poison
from .recovery import Kill, Recoveries, held_by
from .server import ChaosServer
from .settings import ChaosSettings, Fault

_BURST = (1_000, 2_000)
_HOLDING_TRIES = 8


class Injector:
    """Injects faults, and takes back the ones that last for a time.

    Attributes:
        counts: Faults by kind. A worker fault that found nobody to harm counts as "nobody".
        restarts_s: How long the server took to answer after each restart.
    """

    def __init__(
        self,
        settings: ChaosSettings,
        server: ChaosServer,
        pool: Pool,
        poison: Poison,
        burst: Callable[[float, int], None],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.restarts_s: list[float] = []
        self.recoveries = Recoveries()
        self.client = server.client()
        self._settings = settings
        self._server = server
        self._pool = pool
        self._poisons = poison
        self._burst = burst
        self._server_is_down = False
        self._stalled: set[int] = set()
        self._later: list[tuple[float, Callable[[], None]]] = []
        keys = Keys()
        self._streams = {"amn": keys.requests, "fallback": keys.fallback, "shadow": keys.shadow}

    def inject(self, fault: Fault) -> str:
        """Does one; returns a line for the log."""
        if fault.kind in ("kill_server", "stall_server", "drop_clients"):
            self.recoveries.disturb()
        done: str = getattr(self, f"_{fault.kind}")(fault)
        self.counts[fault.kind if done else "nobody"] += 1
        return f"{fault.number} {fault.kind} {done or 'nobody'}"

    def tick(self) -> None:
        """What is due, and a look at recoveries; call it every few hundredths of a second."""
        now_s = time.monotonic()
        for item in [item for item in self._later if item[0] <= now_s]:
            self._later.remove(item)
            item[1]()
        if self._server_is_down:
            return
        with contextlib.suppress(redis.RedisError, OSError):
            self._poisons.send(self.client)
            self.recoveries.look(self.client)

    def heal(self) -> None:
        """Takes everything back at once."""
        while self._later:
            self._later.sort(key=lambda item: item[0])
            self._later.pop(0)[1]()
        for pids in self._pool.pids().values():
            for pid in pids:
                _signal(pid, signal.SIGCONT)
        self.tick()

    # -- workers ------------------------------------------------------------------------------

    def _victim(self, choice: float) -> tuple[str, int] | None:
        alive = [(kind, pid) for kind, pids in sorted(self._pool.pids().items()) for pid in pids]
        return alive[int(choice * len(alive))] if alive else None

    def _kill_worker(self, fault: Fault) -> str:
        victim = self._victim(fault.choice)
        if victim is None:
            return ""
        kind, pid = victim
        ids = self._caught_holding(kind, pid)
        _signal(pid, signal.SIGKILL)
        self.recoveries.disturb(kind)
        helped = self._peer_works(kind, pid)
        self.recoveries.add(Kill(kind, self._streams[kind], ids, time.monotonic(), clean=helped))
        return f"{kind} {pid}, which held {len(ids)}"

    def _peer_works(self, kind: str, pid: int) -> bool:
        """Whether another worker of the kind is ready to take over: loaded, and not stopped."""
        with contextlib.suppress(redis.RedisError, OSError):
            alive = set(self._pool.pids()[kind]) - self._stalled - {pid}
            prefix = Keys().worker(f"{kind}-")
            ready = {
                int(key.split(b"-")[-2]) for key in self.client.scan_iter(match=prefix + "*", count=5000)
            }
            return bool(alive & ready)
        return False

    def _caught_holding(self, kind: str, pid: int) -> list[bytes]:
        """Stops the worker at a moment when it holds entries, if there is one soon."""
        for _ in range(_HOLDING_TRIES):
            _signal(pid, signal.SIGSTOP)
            ids: list[bytes] = []
            with contextlib.suppress(redis.RedisError, OSError):
                ids = held_by(self.client, self._streams[kind], pid)
            if ids:
                return ids
            _signal(pid, signal.SIGCONT)
            time.sleep(0.007)
        return []

    def _term_worker(self, fault: Fault) -> str:
        victim = self._victim(fault.choice)
        if victim is None:
            return ""
        self.recoveries.disturb(victim[0])
        _signal(victim[1], signal.SIGTERM)
        return f"{victim[0]} {victim[1]}"

    def _stall_worker(self, fault: Fault) -> str:
        victim = self._victim(fault.choice)
        if victim is None:
            return ""
        lasts_s = self._settings.lease_ms / 1000 * (1.2 + 1.8 * fault.extent)
        self.recoveries.disturb(victim[0])
        self._stall(victim[1])
        self._after(lasts_s, lambda: self._resume(victim[1]))
        return f"{victim[0]} {victim[1]} for {lasts_s:.2f} s"

    def _stall(self, pid: int) -> None:
        self._stalled.add(pid)
        _signal(pid, signal.SIGSTOP)

    def _resume(self, pid: int) -> None:
        self._stalled.discard(pid)
        _signal(pid, signal.SIGCONT)

    # -- the server ---------------------------------------------------------------------------

    def _kill_server(self, fault: Fault) -> str:
        if self._server_is_down:
            return ""
        self._server.kill()
        self._server_is_down = True
        self._after(fault.extent, self._restart_server)
        return f"for {fault.extent:.2f} s"

    def _restart_server(self) -> None:
        self.restarts_s.append(self._server.start())
        self._server_is_down = False

    def _stall_server(self, fault: Fault) -> str:
        if self._server_is_down:
            return ""
        lasts_s = self._settings.lease_ms / 1000 * (0.5 + 1.5 * fault.extent)
        self._server.send(signal.SIGSTOP)
        time.sleep(lasts_s)  # nothing else can be done meanwhile anyway
        self._server.send(signal.SIGCONT)
        return f"for {lasts_s:.2f} s"

    def _drop_clients(self, _: Fault) -> str:
        with contextlib.suppress(redis.RedisError, OSError):
            dropped = self.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            return f"{dropped} connections"
        return ""

    # -- what is sent -------------------------------------------------------------------------

    def _poison(self, fault: Fault) -> str:
        return self._poisons.make(fault.number, fault.choice)

    def _fill_queue(self, fault: Fault) -> str:
        low, high = _BURST
        count = int(low + (high - low) * fault.extent)
        self._burst(fault.choice, count)
        return f"with {count}"

    def _after(self, seconds: float, do: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, do))


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
