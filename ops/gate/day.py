"""A simulated day of the gate: the real decisions and the real budget, on a clock that is told.

Traffic goes from in-distribution to fully out of it and back, with bursts of the hard lanes. Requests
are drawn from scored windows (the shipped sample, or a decision log), several workers decide them, and
each settles with the server once a simulated second, as in service.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from amn.evaluation.metrics import estimate
from amn.gate.escalation import HIGH_STAKES_LANE, Allowance, decide
from amn.policy import EscalationPolicy
from ops.errors import FileRefused
from ops.gate.log import Logged
from producer.keys import Keys
from workers.gate.budget import SharedBudget

_MINUTE_S = 60
_START_MS = 1_800_000_000_000
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DaySettings:
    """The traffic.

    Attributes:
        hours: Length.    rate: Mean requests a second, Poisson.    workers: AMN workers.
        hard_share: Of the requests, on a hard lane, always.
        bursts: (start as a share of the day, seconds, share of hard lanes meanwhile).
        crash_every_s: A worker dies and starts again this often, forgetting its last second; 0 never.
    """

    hours: float = 24.0
    rate: float = 20.0
    workers: int = 4
    hard_share: float = 0.03
    bursts: tuple[tuple[float, float, float], ...] = ((0.2, 180, 0.25), (0.45, 180, 0.25), (0.7, 45, 0.5))
    crash_every_s: int = 1800
    seed: int = 0

    @property
    def seconds(self) -> int:
        """The day's length."""
        return int(self.hours * 3600)

    def unseen(self, second: int) -> float:
        """Share of out-of-distribution requests in a second: 0, up to 1, and back to 0."""
        share = second / self.seconds
        return float(np.interp(share, [0.0, 0.3, 0.45, 0.55, 0.7, 1.0], [0, 0, 1, 1, 0, 0]))

    def hard(self, second: int) -> float:
        """Share of hard lanes in a second."""
        for start, length_s, share in self.bursts:
            if 0 <= second - start * self.hours * 3600 < length_s:
                return share
        return self.hard_share


@dataclass(slots=True, kw_only=True)
class Day:
    """The events of a day: by second, requests, escalations and possible escalations; and by request,
    its row in the pool and whether a soft rule escalated it."""

    requests: Counts
    escalated: Counts
    demand: Counts
    shed: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    rows: list[int] = field(default_factory=list)
    taken: list[bool] = field(default_factory=list)


def simulate(
    client: redis.Redis,
    policy: EscalationPolicy,
    pool: Sequence[Logged],
    settings: DaySettings,
    on_second: Callable[[int], None] = lambda second: None,
) -> Day:
    """Runs the day. The server's keys of the queue `simulated` are used.

    Raises:
        FileRefused: The pool lacks scores, or one of the two kinds of text.
    """
    draw = np.random.default_rng(settings.seed)
    scores = [line.scores(policy) for line in pool]
    unseen_rows = np.array([line.domain == "unseen" for line in pool])
    kinds = [np.flatnonzero(unseen_rows == unseen) for unseen in (False, True)]
    if None in scores or not all(map(len, kinds)):
        raise FileRefused("the log lacks a score of the policy, or has no text of one kind (domain unseen)")
    requests, escalated, demand = np.zeros((3, settings.seconds), np.int64)
    day = Day(requests=requests, escalated=escalated, demand=demand)
    workers = [_worker(client, policy) for _ in range(settings.workers)]
    for second in range(settings.seconds):
        arrivals = int(draw.poisson(settings.rate))
        unseen = draw.random(arrivals) < settings.unseen(second)
        hard = (draw.random(arrivals) < settings.hard(second)).tolist()
        for i in range(arrivals):
            row = int(draw.choice(kinds[int(unseen[i])]))
            allowance = workers[i % len(workers)][0]
            before = allowance.wanted
            reasons = (HIGH_STAKES_LANE,) if hard[i] else ()
            decision = decide(policy, allowance, reasons, scores[row])  # type: ignore[arg-type]
            requests[second] += 1
            escalated[second] += decision.escalate
            demand[second] += hard[i] or allowance.wanted > before
            day.flagged += bool(decision.reasons)
            day.shed[decision.shed] += bool(decision.shed)
            day.rows.append(row)
            day.taken.append(decision.escalate and not hard[i])
        for _, budget in workers:
            budget.settle(now_ms=_START_MS + second * 1000 + 999)
        if settings.crash_every_s and second % settings.crash_every_s == settings.crash_every_s - 1:
            workers[(second // settings.crash_every_s) % len(workers)] = _worker(client, policy)
        on_second(second)
    return day


def _worker(client: redis.Redis, policy: EscalationPolicy) -> tuple[Allowance, SharedBudget]:
    allowance = Allowance()
    return allowance, SharedBudget(client, Keys("simulated"), policy, allowance)


def report(day: Day, pool: Sequence[Logged], policy: EscalationPolicy) -> dict[str, Any]:
    """Rates over every window, and what the escalations gained."""
    window_s, rate = policy.budget.window_s, policy.budget.rate
    rates = _windows(day.escalated, window_s) / np.maximum(_windows(day.requests, window_s), 1)
    # Demand of one minute cannot be spent in another: demand is there when each minute has it.
    short = _windows(day.demand, _MINUTE_S) < rate * _windows(day.requests, _MINUTE_S)
    wanted = _windows(short.astype(np.int64), len(short) - len(rates) + 1) == 0
    requests, escalated = int(day.requests.sum()), int(day.escalated.sum())
    return {
        "requests": requests,
        "flagged": day.flagged,
        "escalated": escalated,
        "shed": {name: count for name, count in day.shed.items() if name},
        "windows": len(rates),
        "rate_max": round(float(rates.max()), 5),
        "windows_with_demand": int(wanted.sum()),
        "rate_min_with_demand": round(float(rates[wanted].min()), 5) if wanted.any() else None,
        "rate_mean": round(escalated / max(requests, 1), 5),
        "gain": _gains(day, pool, policy),
    }


def _windows(by_second: Counts, window_s: int) -> Counts:
    """Sums of every window that begins at a second, the whole day long."""
    total = np.concatenate(([0], np.cumsum(by_second)))
    length = min(window_s, len(by_second))
    return np.asarray(total[length:] - total[:-length])


def _gains(day: Day, pool: Sequence[Logged], policy: EscalationPolicy) -> dict[str, Any]:
    """Cosine of all final answers over AMN alone, and over as many escalations drawn at random.

    Hard escalations are left out on both sides: no policy may choose about them.
    """
    pairs = [(line.after(policy), line.amn_cosine) for line in pool]
    if any(None in pair for pair in pairs):
        return {}
    rows, taken = np.array(day.rows), np.array(day.taken, dtype=np.float64)
    after, before = np.array(pairs, dtype=np.float64)[rows].T
    gain, articles = after - before, np.array([line.article for line in pool])[rows]
    unseen = np.array([line.domain == "unseen" for line in pool])[rows]
    found: dict[str, dict[str, Any]] = {}
    for name, keep in (("all", np.full(len(rows), True)), ("known", ~unseen), ("unseen", unseen)):
        found[name] = {"n": int(keep.sum()), "escalated": round(float(taken[keep].mean()), 4)}
        for rival, share in (("over_amn", taken), ("over_random", taken - taken.mean())):
            seen = estimate((share * gain)[keep], articles[keep])
            found[name][rival] = {part: round(getattr(seen, part), 7) for part in ("mean", "low", "high")}
    return found
