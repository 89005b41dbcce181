"""Rates from counters that only grow, over the last seconds."""

from __future__ import annotations

from collections import deque
from typing import Any

from ops.page.look import Look

#: Rates are of so long; older counters are of another visit.
_OVER_MS, _KNOWN_MS_MAX = 5_000, 60_000


class CounterRates:
    """Events a second between two looks; None while there is one look."""

    def __init__(self, then: Look | None, now: Look) -> None:
        self._then, self._now = then, now
        self._for_s = (now.now_ms - then.now_ms) / 1000 if then else 0.0

    def __call__(self, *names: str) -> float | None:
        """Returns the rate of these counters together; one that ends in ":" is all that begin with it."""
        if self._then is None:
            return None
        now, then = self._now.facts.counters, self._then.facts.counters
        fields = [f for f in now if any(f.startswith(n) if n.endswith(":") else f == n for n in names)]
        # A counter that fell was set anew: the server was emptied.
        grown = sum(max(now[field] - then.get(field, 0), 0) for field in fields)
        return round(grown / self._for_s, 3)

    def share(self, part: tuple[str, ...], whole: tuple[str, ...]) -> float | None:
        """Returns what part of some events others were; None while nothing happens."""
        some, of = self(*part), self(*whole)
        return None if some is None or not of else round(some / of, 5)

    def parts(self, prefix: str) -> list[dict[str, Any]]:
        """Returns the rates of the counters below a prefix, the largest first; those at rest are left out.

        Rows of a batch are counted below a prefix of their own, and are added; a batch that a hard rule gave
        away counts once more, as the message that it is.
        """
        below = (prefix, f"batch:{prefix}")
        reasons = {
            field.partition(prefix)[2] for field in self._now.facts.counters if field.startswith(below)
        }
        rows = [{"reason": one, "per_s": self(*(f + one for f in below)) or 0.0} for one in reasons if one]
        return sorted((row for row in rows if row["per_s"]), key=lambda row: -row["per_s"])


class Looks:
    """The looks of the last seconds."""

    def __init__(self) -> None:
        self._past: deque[Look] = deque(maxlen=_OVER_MS // 1000 + 2)

    def add(self, look: Look) -> CounterRates:
        """Returns the rates up to this look."""
        now_ms, past = look.now_ms, self._past
        while past and not 0 < now_ms - past[0].now_ms < _KNOWN_MS_MAX:  # another visit, or the clock stepped
            past.popleft()
        while len(past) > 1 and now_ms - past[1].now_ms >= _OVER_MS:
            past.popleft()
        found = CounterRates(past[0] if past else None, look)
        past.append(look)
        return found

    def clear(self) -> None:
        """Forgets them: the server was away."""
        self._past.clear()
