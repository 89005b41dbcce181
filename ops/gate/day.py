"""A simulated day of the gate: the real decisions and the real budget, on a clock that is told.

Traffic goes from in-distribution to fully out of it and back, with bursts of the hard lanes. Requests
are drawn from scored windows (the shipped sample, or a decision log), several workers decide them, and
each settles with the server once a simulated second, as in service.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from amn.evaluation.metrics import estimate
from amn.gate.escalation import HIGH_STAKES_LANE, Allowance, Scores, decide
from amn.policy import BudgetRule, EscalationPolicy
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
        hard_share: Share of the requests on a hard lane, always.
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


def simulate(
    client: redis.Redis,
    policy: EscalationPolicy,
    pool: Sequence[Logged],
    settings: DaySettings,
    on_second: Callable[[int], None] = lambda second: None,
) -> dict[str, Any]:
    """Runs the day, and reports the rates of every window and what the escalations gained.

    The server's keys of the queue `simulated` are used.

    Raises:
        FileRefused: The pool lacks scores, or one of the two kinds of text.
    """
    scores, kinds = _drawn_from(pool, policy)
    draw = np.random.default_rng(settings.seed)
    requests, escalated, demand = np.zeros((3, settings.seconds), np.int64)
    rows, taken, flagged, shed = [], [], 0, Counter[str]()
    workers = [_worker(client, policy) for _ in range(settings.workers)]
    for second in range(settings.seconds):
        for i, (row, hard) in enumerate(_arrivals(draw, settings, second, kinds)):
            allowance = workers[i % len(workers)][0]
            before = allowance.wanted
            decision = decide(policy, allowance, (HIGH_STAKES_LANE,) if hard else (), scores[row])
            requests[second] += 1
            escalated[second] += decision.escalate
            demand[second] += hard or allowance.wanted > before
            flagged += bool(decision.reasons)
            shed[decision.shed] += 1
            rows.append(row)
            taken.append(decision.escalate and not hard)
        for _, budget in workers:
            budget.settle(now_ms=_START_MS + second * 1000 + 999)
        if settings.crash_every_s and second % settings.crash_every_s == settings.crash_every_s - 1:
            workers[(second // settings.crash_every_s) % len(workers)] = _worker(client, policy)
        on_second(second)
    return {
        "requests": int(requests.sum()),
        "flagged": flagged,
        "escalated": int(escalated.sum()),
        "shed": {name: count for name, count in shed.items() if name},
        **_rates(requests, escalated, demand, policy.budget),
        "gain": _gains(np.array(rows), np.array(taken, dtype=np.float64), pool, policy),
    }


def _drawn_from(
    pool: Sequence[Logged], policy: EscalationPolicy
) -> tuple[list[Scores], list[NDArray[np.intp]]]:
    """The scores of the pool, and its rows of known and of unseen text."""
    scores = [line.scores(policy) for line in pool]
    if None in scores:
        raise FileRefused(
            f"decision {scores.index(None) + 1} of the log lacks a score that policy {policy.name} asks for; "
            "take a log that `amn calibrate` wrote, or another policy"
        )
    unseen_rows = np.array([line.domain == "unseen" for line in pool])
    kinds = [np.flatnonzero(unseen_rows == unseen) for unseen in (False, True)]
    if not all(map(len, kinds)):
        raise FileRefused(
            f"the log has {len(kinds[0])} decisions of known text and {len(kinds[1])} of domain unseen; a "
            "day needs both, as `amn calibrate` writes them"
        )
    return [one for one in scores if one is not None], kinds


def _arrivals(
    draw: np.random.Generator, settings: DaySettings, second: int, kinds: list[NDArray[np.intp]]
) -> Iterator[tuple[int, bool]]:
    """Requests of a second: each one's row in the pool, and whether it is on a hard lane."""
    count = int(draw.poisson(settings.rate))
    unseen = draw.random(count) < settings.unseen(second)
    hard = (draw.random(count) < settings.hard(second)).tolist()
    for i in range(count):
        yield int(draw.choice(kinds[int(unseen[i])])), hard[i]


def _worker(client: redis.Redis, policy: EscalationPolicy) -> tuple[Allowance, SharedBudget]:
    allowance = Allowance()
    return allowance, SharedBudget(client, Keys("simulated"), policy, allowance)


def _rates(requests: Counts, escalated: Counts, demand: Counts, budget: BudgetRule) -> dict[str, Any]:
    """Shares escalated in every window, and in those whose every minute had enough to escalate.

    Demand of one minute cannot be spent in another: demand is there when each minute has it.
    """
    rates = _windows(escalated, budget.window_s) / np.maximum(_windows(requests, budget.window_s), 1)
    short = _windows(demand, _MINUTE_S) < budget.rate * _windows(requests, _MINUTE_S)
    wanted = _windows(short.astype(np.int64), len(short) - len(rates) + 1) == 0
    return {
        "windows": len(rates),
        "rate_max": round(float(rates.max()), 5),
        "windows_with_demand": int(wanted.sum()),
        "rate_min_with_demand": round(float(rates[wanted].min()), 5) if wanted.any() else None,
        "rate_mean": round(int(escalated.sum()) / max(int(requests.sum()), 1), 5),
    }


def _windows(by_second: Counts, window_s: int) -> Counts:
    """Sums of every window that begins at a second, the whole day long."""
    total = np.concatenate(([0], np.cumsum(by_second)))
    length = min(window_s, len(by_second))
    return np.asarray(total[length:] - total[:-length])


def _gains(
    rows: NDArray[np.int_], taken: NDArray[np.float64], pool: Sequence[Logged], policy: EscalationPolicy
) -> dict[str, Any]:
    """Cosine of all final answers over AMN alone, and over as many escalations drawn at random.

    Hard escalations are left out on both sides: no policy may choose about them.

    Args:
        rows: By request, its line in the pool.    taken: Whether a soft rule escalated it.
    """
    pairs = [(line.after(policy), line.amn_cosine) for line in pool]
    if any(None in pair for pair in pairs):
        return {}
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
