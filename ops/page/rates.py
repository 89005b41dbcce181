"""Rates from counters that only grow, over the last seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

Counters = Mapping[str, int]

#: Rates are of so long; older counters are of another visit.
_OVER_MS, _KNOWN_MS_MAX = 5_000, 60_000


class CounterRates:
    """Events a second between two readings of the counters; None while there is one reading."""

    def __init__(self, then: Counters | None, now: Counters, for_s: float) -> None:
        self._then, self._now, self._for_s = then, now, for_s

    def __call__(self, *names: str) -> float | None:
        """Returns the rate of these counters together; one that ends in ":" is all that begin with it."""
        now, then = self._now, self._then
        if then is None:
            return None
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
        reasons = {field.partition(prefix)[2] for field in self._now if field.startswith(below)}
        rows = [{"reason": one, "per_s": self(*(f + one for f in below)) or 0.0} for one in reasons if one]
        return sorted((row for row in rows if row["per_s"]), key=lambda row: -row["per_s"])


class Readings:
    """The counters of the last seconds, by the server's clock."""

    def __init__(self) -> None:
        self._past: deque[tuple[int, Counters]] = deque(maxlen=_OVER_MS // 1000 + 2)

    def add(self, now_ms: int, counters: Counters) -> CounterRates:
        """Returns the rates up to this reading."""
        past = self._past
        while past and not 0 < now_ms - past[0][0] < _KNOWN_MS_MAX:  # another visit, or the clock stepped
            past.popleft()
        while len(past) > 1 and now_ms - past[1][0] >= _OVER_MS:
            past.popleft()
        then_ms, then = past[0] if past else (now_ms, None)
        past.append((now_ms, counters))
        return CounterRates(then, counters, (now_ms - then_ms) / 1000)

    def clear(self) -> None:
        """Forgets them: the server was away."""
        self._past.clear()
