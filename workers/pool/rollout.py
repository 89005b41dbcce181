"""Replaces the workers of a pool one at a time, and never takes one away before another is ready."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from workers.pool.child import WorkerProcess
from workers.pool.served import Served

_LOG = structlog.get_logger("amn.pool")
_READY_S_MAX = 120.0
#: Between two tries with what was refused: doubled each time. Someone may repair it in place.
_AGAIN_S, _AGAIN_S_MAX = 5.0, 600.0
#: A successor that was killed says nothing about what it was to serve.
_KILLED_S = 1.0


@dataclass(frozen=True, slots=True)
class Version:
    """What a worker was started with: the links, and the number of the restart asked for."""

    served: Served
    restart: int = 0

    def of(self, kind: str) -> tuple[object, ...]:
        """Workers of one kind with the same value need not be replaced."""
        return self.restart, self.served.of(kind)


@dataclass(slots=True)
class Slot:
    """A place in the pool, and who has it."""

    kind: str
    child: WorkerProcess
    version: Version


@dataclass(slots=True)
class _Refusal:
    version: tuple[object, ...]
    tries: int
    again_at_s: float


class Rollout:
    """One replacement at a time: start the successor, wait until it is ready, let the old one leave.

    A successor that does not get ready changes nothing but the log: the old workers go on.

    Attributes:
        swaps: Workers that were replaced so far.
    """

    def __init__(
        self,
        slots: list[Slot],
        spawn: Callable[[str, Version], WorkerProcess],
        dismiss: Callable[[WorkerProcess], None],
    ) -> None:
        self.swaps = 0
        self._slots = slots
        self._spawn = spawn
        self._dismiss = dismiss
        self._slot: Slot | None = None
        self._successor: WorkerProcess | None = None
        self._version: Version | None = None
        self._refusals: dict[str, _Refusal] = {}

    @property
    def successor(self) -> WorkerProcess | None:
        """The one that is getting ready."""
        return self._successor

    def replaces(self, slot: Slot) -> bool:
        """Whether this slot's successor is on its way."""
        return self._slot is slot

    def turn(self, wanted: Version) -> None:
        """The next step, if one is due."""
        if self._successor is None:
            slot = next((slot for slot in self._slots if self._due(slot, wanted)), None)
            if slot is not None:
                self._successor = self._spawn(slot.kind, wanted)
                self._slot, self._version = slot, wanted
        elif self._successor.ready.is_set() and self._successor.alive:
            self._take_over(self._successor)
        elif not self._successor.alive or self._successor.age_s > _READY_S_MAX:
            self._refuse(self._successor)

    def settled(self, wanted: Version) -> bool:
        """Whether every worker serves what is wanted."""
        return self._successor is None and all(
            slot.version.of(slot.kind) == wanted.of(slot.kind) for slot in self._slots
        )

    def _due(self, slot: Slot, wanted: Version) -> bool:
        if slot.version.of(slot.kind) == wanted.of(slot.kind):
            return False
        refusal = self._refusals.get(slot.kind)
        refused = refusal is not None and refusal.version == wanted.of(slot.kind)
        return not refused or refusal is None or time.monotonic() >= refusal.again_at_s

    def _take_over(self, successor: WorkerProcess) -> None:
        slot, version = self._slot, self._version
        assert slot is not None
        assert version is not None
        old, slot.child, slot.version = slot.child, successor, version
        self._slot = self._successor = self._version = None
        self._refusals.pop(slot.kind, None)
        self.swaps += 1
        _LOG.info("worker_swapped", kind=slot.kind, old=old.pid, new=successor.pid)
        self._dismiss(old)

    def _refuse(self, successor: WorkerProcess) -> None:
        slot, version = self._slot, self._version
        assert slot is not None
        assert version is not None
        killed = successor.code is not None and successor.code < 0
        tried, last = version.of(slot.kind), self._refusals.get(slot.kind)
        tries = last.tries + 1 if last is not None and last.version == tried else 1
        pause_s = _KILLED_S if killed else min(_AGAIN_S * 2 ** (tries - 1), _AGAIN_S_MAX)
        self._refusals[slot.kind] = _Refusal(tried, tries, time.monotonic() + pause_s)
        _LOG.error(
            "swap_refused",
            kind=slot.kind,
            code=successor.code,
            serving=slot.child.pid,
            again_in_s=pause_s,
            text="the new worker did not get ready; the old ones go on serving what they have",
        )
        self._slot = self._successor = self._version = None
        self._dismiss(successor)
