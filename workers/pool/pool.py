"""Keeps N worker processes of each kind alive: real processes, spawned, never forked."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import structlog

from workers.errors import NotReady
from workers.pool.child import Child
from workers.pool.failures import Deaths
from workers.pool.rollout import Rollout, Slot
from workers.pool.served import Served, pin, read_links
from workers.pool.settings import PoolSettings
from workers.pulse import silence_s_max

_LOG = structlog.get_logger("amn.pool")
#: Longest pause before another start of a kind whose workers die before they are ready.
_PAUSE_S_MAX = 10.0
#: Pause between two looks after the workers; longer each time while that fails.
_WATCH_S, _WATCH_S_MAX = 0.2, 5.0
#: Pause between two readings of the links.
_LINKS_S = 1.0
#: A worker that was replaced finishes its batch within this, or its lease does the rest.
_LEAVE_S_MAX = 15.0
#: A worker that gives no sign for this share of what ends it, and for two seconds, is shown as silent; it
#: gives two a second.
_SILENT_SHARE, _SHOWN_S_MIN = 1 / 6, 2.0


class Pool:
    """A fixed number of workers of each kind: replaced when they die, and when a link moves.

    Attributes:
        died: Children that died and were started again, by kind.
    """

    def __init__(self, counts: Mapping[str, int], settings: PoolSettings) -> None:
        self.died: Counter[str] = Counter()
        self._counts = dict(counts)
        self._settings = settings
        self._slots: list[Slot] = []
        self._leaving: list[Child] = []
        self._rollout = Rollout(self._slots, self._spawn, self._dismiss)
        self._wanted = Served()
        self._links_read_at_s = 0.0
        self._pause_s: dict[str, float] = {}
        self._draining = False
        self._silence_s_max = silence_s_max()
        self._quiet: dict[int, str] = {}
        self._pins: tempfile.TemporaryDirectory[str] | None = None
        self._pinned: dict[object, Path] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        """Spawns every child; returns before they are ready."""
        self._pins = tempfile.TemporaryDirectory(prefix="amn-pool-", ignore_cleanup_errors=True)
        self._wanted = read_links(self._settings.artifacts)
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
            if not child.is_ready(give_up_at_s - time.monotonic()):
                raise NotReady(f"a worker did not start: {child.exit_reason()}")

    def pids(self) -> dict[str, list[int]]:
        """Process ids of the living children by kind, those that come and go included."""
        found: dict[str, list[int]] = {kind: [] for kind in self._counts}
        for child in self._children():
            if child.alive:
                found[child.name].append(child.pid)
        return found

    def restart(self) -> None:
        """Asks for a rolling restart: `poll` replaces every worker, one at a time."""
        with self._lock:
            self._wanted = self._wanted._replace(restart=self._wanted.restart + 1)

    @property
    def restarts(self) -> int:
        """Children that were started again after they died."""
        return self.died.total()

    @property
    def swaps(self) -> int:
        """Workers that were replaced while they ran."""
        return self._rollout.swaps

    @property
    def settled(self) -> bool:
        """True when every worker serves what the links name, and none is being replaced."""
        with self._lock:
            return self._rollout.settled(self._wanted) and not self._leaving

    def poll(self) -> None:
        """Starts dead children again, and goes on with a replacement that is due."""
        with self._lock:
            if self._draining:
                return
            self._see_off()
            self._end_silent()
            shown_s = max(_SILENT_SHARE * self._silence_s_max, _SHOWN_S_MIN)
            self._quiet = {one.pid: one.name for one in self._silent(shown_s)}
            for slot in self._slots:
                if not slot.child.alive and slot.successor is None:
                    self._revive(slot)
            if time.monotonic() - self._links_read_at_s > _LINKS_S:
                self._links_read_at_s = time.monotonic()
                self._wanted = self._wanted._replace(links=read_links(self._settings.artifacts).links)
            self._rollout.turn(self._wanted)

    def watch(self) -> None:
        """Polls in a thread until `drain`, whatever happens: a full disk, or a system without a
        free process, passes."""
        threading.Thread(target=self._watch, name="amn-pool", daemon=True).start()

    def _watch(self) -> None:
        deaths, pause_s = Deaths(self._settings.url, self._settings.queue), _WATCH_S
        while not self._draining:
            try:
                self.poll()
                deaths.tell(self.died)
                deaths.show_silent(self._quiet)
                pause_s = _WATCH_S
            except Exception:
                pause_s = min(2 * pause_s, _WATCH_S_MAX)
                _LOG.exception("pool_watch_failed", again_in_s=pause_s)
            time.sleep(pause_s)
        deaths.close()

    def drain(self, deadline_s: float = 10.0) -> None:
        """SIGTERM to all, waits, then SIGKILL to who is left. Idempotent."""
        with self._lock:
            self._draining = True
        children = self._children()
        for child in children:
            child.leave()
        give_up_at_s = time.monotonic() + deadline_s
        for child in children:
            _end(child, give_up_at_s - time.monotonic())
        if self._pins is not None:
            self._pins.cleanup()
            self._pins = None

    def _children(self) -> list[Child]:
        coming = [slot.successor for slot in self._slots if slot.successor is not None]
        return [*(slot.child for slot in self._slots), *coming, *self._leaving]

    def _revive(self, slot: Slot) -> None:
        """Starts a dead worker again, with a growing pause where they die before they are ready.

        One that was ready died over its work, which is counted with its entries: every pause here
        would only keep the others' requests waiting. The new one serves what it served before: whether
        that which is wanted now holds is not known yet.
        """
        old, kind = slot.child, slot.kind
        pause_s = self._pause_s.get(kind, 0.0)
        if old.age_s < pause_s:
            return
        child = self._spawn(kind, slot.version)
        self._pause_s[kind] = 0.0 if old.is_ready() else min(2 * pause_s + 0.5, _PAUSE_S_MAX)
        slot.child = child
        self.died[kind] += 1
        old.end(0)
        _LOG.warning("worker_died", kind=kind, pid=old.pid, code=old.code)

    def _end_silent(self) -> None:
        """Kills workers that are stopped, or whose watchdog cannot run. Their leases ran out long ago."""
        for child in self._silent(self._silence_s_max):
            _LOG.error("worker_silent", kind=child.name, pid=child.pid, for_s=round(child.silent_s(), 1))
            child.end(0)

    def _silent(self, longer_than_s: float) -> list[Child]:
        """Workers that have given no sign for so long."""
        return [one for one in self._children() if one.silent_s() > longer_than_s]

    def _dismiss(self, child: Child) -> None:
        child.leave()
        self._leaving.append(child)

    def _see_off(self) -> None:
        for child in list(self._leaving):
            if not child.alive or child.leaving_s > _LEAVE_S_MAX:
                _end(child, 0)
                self._leaving.remove(child)

    def _spawn(self, kind: str, served: Served) -> Child:
        settings = self._settings
        assert self._pins is not None
        folder = self._pinned.setdefault(served.links, Path(self._pins.name) / str(len(self._pinned)))
        # Each time anew: whoever tidies up temporary folders may have been there since.
        command = settings.command(kind, pin(served, settings.artifacts, folder))
        return Child(kind, command, settings.environment(), settings.log_file)


def _end(child: Child, timeout_s: float) -> None:
    if not child.end(timeout_s):
        _LOG.warning("worker_killed_at_deadline", kind=child.name, pid=child.pid)
