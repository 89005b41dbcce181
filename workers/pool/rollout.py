"""Replaces the workers of a pool one at a time, and never takes one away before another is ready."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from workers.pool.child import Child
from workers.pool.served import Served

_LOG = structlog.get_logger("amn.pool")
_READY_S_MAX = 120.0
#: Between two tries with what was refused: doubled each time. Someone may repair it in place.
_AGAIN_S, _AGAIN_S_MAX = 5.0, 600.0
#: A successor that was killed says nothing about what it was to serve.
_KILLED_S = 1.0


@dataclass(frozen=True, slots=True)
class Version:
    """The links that a worker was started with, and the number of the restart asked for."""

    served: Served
    restart: int = 0

    def of(self, kind: str) -> tuple[object, ...]:
        """Workers of one kind with the same value need not be replaced."""
        return self.restart, self.served.of(kind)


@dataclass(slots=True)
class Slot:
    """One of the pool's workers, whichever process it is at the moment."""

    kind: str
    child: Child
    version: Version


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A replacement that is under way."""

    slot: Slot
    version: Version
    successor: Child


@dataclass(frozen=True, slots=True)
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
        spawn: Callable[[str, Version], Child],
        dismiss: Callable[[Child], None],
    ) -> None:
        self.swaps = 0
        self._slots, self._spawn, self._dismiss = slots, spawn, dismiss
        self._attempt: _Attempt | None = None
        self._refusals: dict[str, _Refusal] = {}

    @property
    def successor(self) -> Child | None:
        """The one that is getting ready."""
        return None if self._attempt is None else self._attempt.successor

    def replaces(self, slot: Slot) -> bool:
        """True while this slot's successor is on its way."""
        return self._attempt is not None and self._attempt.slot is slot

    def turn(self, wanted: Version) -> None:
        """The next step, if one is due."""
        attempt = self._attempt
        if attempt is None:
            slot = next((slot for slot in self._slots if self._due(slot, wanted)), None)
            if slot is not None:
                self._attempt = _Attempt(slot, wanted, self._spawn(slot.kind, wanted))
        elif attempt.successor.is_ready() and attempt.successor.alive:
            self._take_over(attempt)
        elif not attempt.successor.alive or attempt.successor.age_s > _READY_S_MAX:
            self._refuse(attempt)

    def settled(self, wanted: Version) -> bool:
        """True when every worker serves what is wanted."""
        return self._attempt is None and all(
            slot.version.of(slot.kind) == wanted.of(slot.kind) for slot in self._slots
        )

    def _due(self, slot: Slot, wanted: Version) -> bool:
        version, refusal = wanted.of(slot.kind), self._refusals.get(slot.kind)
        if slot.version.of(slot.kind) == version:
            return False
        return refusal is None or refusal.version != version or time.monotonic() >= refusal.again_at_s

    def _take_over(self, attempt: _Attempt) -> None:
        slot, old = attempt.slot, attempt.slot.child
        slot.child, slot.version = attempt.successor, attempt.version
        self._attempt = None
        self._refusals.pop(slot.kind, None)
        self.swaps += 1
        _LOG.info("worker_swapped", kind=slot.kind, old=old.pid, new=slot.child.pid)
        self._dismiss(old)

    def _refuse(self, attempt: _Attempt) -> None:
        kind, code, tried = attempt.slot.kind, attempt.successor.code, attempt.version.of(attempt.slot.kind)
        last = self._refusals.get(kind)
        tries = last.tries + 1 if last is not None and last.version == tried else 1
        killed = code is not None and code < 0
        pause_s = _KILLED_S if killed else min(_AGAIN_S * 2 ** (tries - 1), _AGAIN_S_MAX)
        self._refusals[kind] = _Refusal(tried, tries, time.monotonic() + pause_s)
        _LOG.error(
            "swap_refused",
            kind=kind,
            code=code,
            serving=attempt.slot.child.pid,
            again_in_s=pause_s,
            text="the new worker did not get ready; the old ones go on serving what they have",
        )
        self._attempt = None
        self._dismiss(attempt.successor)
