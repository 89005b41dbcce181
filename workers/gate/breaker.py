"""A circuit breaker for a fallback tier. Pure: what is known of the tier comes in, with the time.

    closed ── fails ──▶ open ── after the pause ──▶ half open ── an answer ──▶ closed
                         ▲                             │
                         └─────────── fails ◀──────────┘

Closed, everything goes through. Open, nothing does: AMN answers at once with `degraded` set. Half
open, one request an update goes through, to see. While no worker lives, or what waits is not answered, it
is open whatever the state, and as before once that is over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half_open"
#: Failures, and their share among the tier's results of the last `_MEMORY_S`, from which on it opens.
_FAILED_MIN, _FAILED_SHARE, _MEMORY_S = 5, 0.5, 10.0
#: An entry older than this is a tier that does not answer.
_LAG_MS_MAX = 30_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TierFacts:
    """The state of a tier; counts are totals that only grow, but when its last worker goes.

    Attributes:
        alive: Whether a worker of it lives.
        ok, failed: Requests that it answered, and could not answer.
        waiting: Entries in its stream.    lag_ms: Age of the oldest of them.
    """

    alive: bool = True
    ok: int = 0
    failed: int = 0
    waiting: int = 0
    lag_ms: int = 0


class Breaker:
    """The state of one tier as one worker sees it; all see the same facts.

    Args:
        pause_s: How long it stays open.
    """

    def __init__(self, pause_s: float = 5.0) -> None:
        self.state = CLOSED
        self._pause_s = pause_s
        self._unwell = False
        self._opened_at_s = 0.0
        self._past: list[tuple[float, int, int]] = []

    @property
    def let_through(self) -> float:
        """The escalations that may go through until the next update."""
        return {CLOSED: math.inf, OPEN: 0.0, HALF_OPEN: 1.0}[self.shown]

    def update(self, facts: TierFacts, now_s: float) -> str:
        """Takes in what is known now; returns the state."""
        failed, ok = self._recent(facts, now_s)
        broken = failed >= _FAILED_MIN and failed >= _FAILED_SHARE * (failed + ok)
        self._unwell = not facts.alive or facts.lag_ms > _LAG_MS_MAX
        if (self.state == CLOSED and broken) or (self.state == HALF_OPEN and failed > 0):
            self.state = OPEN
            self._opened_at_s = now_s
        elif self.state == HALF_OPEN and ok:
            self.state = CLOSED
        elif self.state == OPEN and now_s - self._opened_at_s >= self._pause_s:
            self.state = HALF_OPEN
            self._past = self._past[-1:]  # only what comes from now on counts
        return self.shown

    @property
    def shown(self) -> str:
        """The state; open too while no worker lives or nothing is answered, however it was before."""
        return OPEN if self._unwell else self.state

    def _recent(self, facts: TierFacts, now_s: float) -> tuple[int, int]:
        """Failures and answers of the last `_MEMORY_S`, or since the breaker was half opened."""
        if self._past and (facts.ok < self._past[-1][1] or facts.failed < self._past[-1][2]):
            self._past.clear()  # the tier's totals began anew
        self._past.append((now_s, facts.ok, facts.failed))
        while len(self._past) > 2 and now_s - self._past[1][0] >= _MEMORY_S:
            del self._past[0]
        _, ok, failed = self._past[0]
        return facts.failed - failed, facts.ok - ok
