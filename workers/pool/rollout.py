"""Replaces the workers of a pool one at a time, and never takes one away before another is ready."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from workers.pool.child import Child
from workers.pool.served import Served

_LOG = structlog.get_logger("amn.pool")
_READY_S_MAX = 120.0
#: Between two tries with what was refused: doubled each time. Someone may repair it in place.
_AGAIN_S, _AGAIN_S_MAX = 5.0, 600.0
#: A successor that was killed says nothing about what it was to serve.
_KILLED_S = 1.0


@dataclass(slots=True)
class Slot:
    """One of the pool's workers, whichever process it is, and the one that is getting ready to replace it."""

    kind: str
    child: Child
    version: Served
    successor: Child | None = None
    coming: Served | None = None


class _Refusal(NamedTuple):
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
        self, slots: list[Slot], spawn: Callable[[str, Served], Child], dismiss: Callable[[Child], None]
    ) -> None:
        self.swaps = 0
        self._slots, self._spawn, self._dismiss = slots, spawn, dismiss
        self._refusals: dict[str, _Refusal] = {}

    def turn(self, wanted: Served) -> None:
        """The next step, if one is due."""
        for slot in self._slots:
            if slot.successor is not None and slot.coming is not None:
                self._follow(slot, slot.successor, slot.coming)
                return
        for slot in self._slots:
            if self._due(slot, wanted):
                slot.successor, slot.coming = self._spawn(slot.kind, wanted), wanted
                return

    def settled(self, wanted: Served) -> bool:
        """True when every worker serves what is wanted."""
        return all(
            slot.successor is None and slot.version.of(slot.kind) == wanted.of(slot.kind)
            for slot in self._slots
        )

    def _due(self, slot: Slot, wanted: Served) -> bool:
        version, refusal = wanted.of(slot.kind), self._refusals.get(slot.kind)
        if slot.version.of(slot.kind) == version:
            return False
        return refusal is None or refusal.version != version or time.monotonic() >= refusal.again_at_s

    def _follow(self, slot: Slot, successor: Child, coming: Served) -> None:
        if successor.is_ready() and successor.alive:
            old, slot.child, slot.version = slot.child, successor, coming
            self._refusals.pop(slot.kind, None)
            self.swaps += 1
            _LOG.info("worker_swapped", kind=slot.kind, old=old.pid, new=successor.pid)
        elif not successor.alive or successor.age_s > _READY_S_MAX:
            old = successor
            self._refuse(slot, successor, coming.of(slot.kind))
        else:
            return
        slot.successor = slot.coming = None
        self._dismiss(old)

    def _refuse(self, slot: Slot, successor: Child, tried: tuple[object, ...]) -> None:
        last, code = self._refusals.get(slot.kind), successor.code
        tries = last.tries + 1 if last is not None and last.version == tried else 1
        killed = code is not None and code < 0
        pause_s = _KILLED_S if killed else min(_AGAIN_S * 2 ** (tries - 1), _AGAIN_S_MAX)
        self._refusals[slot.kind] = _Refusal(tried, tries, time.monotonic() + pause_s)
        _LOG.error(
            "swap_refused",
            kind=slot.kind,
            code=code,
            serving=slot.child.pid,
            again_in_s=pause_s,
            text="the new worker did not get ready; the old ones go on serving what they have",
        )
