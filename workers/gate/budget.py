"""The budget that all AMN workers of a queue share, without a round trip a request.

Keys, both below `gate_prefix`, both gone two windows after the last settlement:

    amn:{main}:gate:window   hash   `<bucket>:<stat>`, lua/budget.lua says what they hold
    amn:{main}:gate:budget   hash   tokens, and sums of the window for whoever looks

About once a second a side thread settles what the worker decided since, and is
granted soft escalations for the next second. What can go wrong, and how far:

- Soft escalations never exceed what was granted, and what is granted is paid for at once: over any
  stretch of n requests they are at most (rate - reserve) * n, plus five seconds' earnings.
- Hard escalations are told up to a second late. Soft ones pay for them, and none is shed for a soft
  one's sake; beyond the policy's `hard_rate` they are shed, up to a second late too.
- Rows of files have an account of their own: they earn what the rows that their client chose cost. A cost
  that they do not cover is taken from the others, which so never escalate more than the rate together.
- A worker that is killed takes its last second with it: up to a second of its hard escalations is
  never counted, and its unused grants are lost, which errs to the safe side.
- While the server is away nothing is granted; what was granted before is used up.
"""

from __future__ import annotations

import math
from typing import cast

import redis
import structlog

from amn.gate.escalation import Allowance, threshold_for
from amn.policy import ACCURACY, ENFORCE, EscalationPolicy
from producer.keys import Keys
from workers.engine.reads import load
from workers.gate.breaker import TierFacts
from workers.gate.tiers import TierWatch
from workers.settings import WorkerSettings
from workers.side import SideThread

_LOG = structlog.get_logger("amn.gate")
#: A little more than a second's need, so that a late settlement does not leave the worker dry.
_AHEAD = 1.5
#: The threshold lets through a little more than the budget, which then has the last word: what a
#: threshold keeps back can not be spent later.
_EAGER = 1.25
_FADE = 0.97
#: Hard escalations of a window that are let through however few requests there were.
HARD_MIN = 100
#: Up to this age of the oldest entry that waits for a fallback nothing changes; from the second one on no
#: soft rule escalates, as from this share of the stream's limit of entries on.
_LAG_MS_FINE, _LAG_MS_MAX, _FULL_SHARE = 2_000, 10_000, 0.9


def window_key(keys: Keys) -> str:
    """Counts by bucket."""
    return f"{keys.gate_prefix}window"


def budget_key(keys: Keys) -> str:
    """The state of the budget."""
    return f"{keys.gate_prefix}budget"


def room_for(facts: TierFacts, entries_max: int) -> float:
    """Share of the usual soft escalations, 0 to 1, that a tier can take which may lag."""
    if facts.waiting >= _FULL_SHARE * entries_max:
        return 0.0
    late = (facts.lag_ms - _LAG_MS_FINE) / (_LAG_MS_MAX - _LAG_MS_FINE)
    return 1.0 - min(max(late, 0.0), 1.0)


class SharedBudget:
    """One worker's end of the shared budget: settles its `Allowance`."""

    def __init__(
        self, client: redis.Redis, keys: Keys, policy: EscalationPolicy, allowance: Allowance
    ) -> None:
        self._settle = load("budget").on(client)
        self._keys = [window_key(keys), budget_key(keys)]
        self._policy = policy
        self._allowance = allowance
        self._told = (0, 0, 0, 0, 0, 0)
        #: Requests, hard escalations and candidates of about the last half minute, fading.
        self._lately = [0.0, 0.0, 0.0]
        self._share = 1.0
        #: From this share on, hard rules alone take what they may.
        self._hard_much = min(policy.budget.rate, 0.95 * policy.budget.hard_rate)
        self.infeasible = False

    def settle(self, room: float = 1.0, now_ms: int = 0) -> None:
        """Tells what was decided, takes new grants, and sets the threshold.

        Args:
            room: Share of the usual soft escalations that the fallback can take, 0 to 1.
            now_ms: Epoch ms; 0 for the server's clock.

        Raises:
            RedisError: Nothing was settled, or it is not known whether; the counts go with the next.
        """
        allowance, budget = self._allowance, self._policy.budget
        files = allowance.file_seen, allowance.file_soft
        counts = (allowance.seen, allowance.hard, allowance.soft, allowance.wanted, *files)
        since = [now - then for now, then in zip(counts, self._told, strict=True)]
        observe = budget.mode != ENFORCE
        recent = (since[0], since[1], since[3])
        self._lately = [_FADE * past + count for past, count in zip(self._lately, recent, strict=True)]
        wanted = 0 if observe else self._wanted(since[3], room)
        if wanted < 0:
            allowance.granted += wanted  # handed back before it is told, never used twice
        # After a call whose end is not known, what earns is never told again and what costs is: the
        # error is to the safe side.
        self._told = (counts[0], *self._told[1:3], *counts[3:5], self._told[5])
        arguments = [now_ms, budget.window_s * 1000, budget.rate, budget.reserve, *since[:4], wanted]
        granted, *window = self._settle(self._keys, [*arguments, int(observe), self._hard_much, *since[4:]])
        self._told = counts
        # Settled once a second, so that a flood of one lane goes on for no longer than that.
        hard_left = max(HARD_MIN, budget.hard_rate * window[0]) - window[1]
        allowance.hard_max = math.inf if observe or budget.hard_rate == 1 else counts[1] + max(0, hard_left)
        if observe:  # grants only mark what is beyond the budget, and stop nothing
            n, hard, soft, _ = window
            allowance.granted = allowance.soft + max(0.0, budget.rate * n - hard - soft)
        else:
            allowance.granted += granted
        self._said(*window[:2])
        self._aim(room)

    def _wanted(self, candidates: int, room: float) -> int:
        """Grants to ask for; below 0, to hand back. Follows what the threshold lets through."""
        pace = max(candidates, (1 - _FADE) * self._lately[2])
        need = _AHEAD * pace * min(1.0, self._share) * room + (room > 0)
        return round(need - self._allowance.left)

    def _aim(self, room: float) -> None:
        """The threshold that spends what hard rules leave of the budget on the best candidates."""
        n, hard, candidates = self._lately
        budget, allowance = self._policy.budget, self._allowance
        if budget.mode != ENFORCE or not n:
            return
        left = max(0.0, budget.rate - budget.reserve - hard / n)
        self._share = _EAGER * left * n / candidates if candidates else 1.0
        allowance.lagging = room < 1.0
        allowance.threshold = threshold_for(allowance.candidates(), self._share * room)

    def _said(self, n: int, hard: int) -> None:
        """Says loudly, once, that hard rules alone break the budget, and when they stop."""
        infeasible = n >= 100 and hard > self._hard_much * n
        if infeasible != self.infeasible:
            self.infeasible = infeasible
            event = "budget_infeasible" if infeasible else "budget_feasible_again"
            _LOG.warning(event, hard_share=round(hard / n, 4) if n else 0, rate=self._policy.budget.rate)


class GateThread(SideThread):
    """The side thread of an AMN worker: settles the budget once a second, and follows the first tier."""

    name = "gate"
    at_end = True

    def __init__(self, settings: WorkerSettings, policy: EscalationPolicy, allowance: Allowance) -> None:
        super().__init__(settings)
        self._policy, self._allowance = policy, allowance
        self._budget = SharedBudget(self.client, self.keys, policy, allowance)
        self._watch = TierWatch(self.client, self.keys, ACCURACY)

    def take_turn(self, now_s: float) -> None:
        """Makes one settlement; the last one hands back what is not used."""
        facts = self._watch.update(now_s)
        self._allowance.breaker_left = self._watch.breaker.let_through if self._policy.chain.tiers else 0
        # A worker that leaves wants nothing more, so that what it holds goes back to the others.
        entries_max = self.settings.queue.fallback_entries_max
        self._budget.settle(0.0 if self.stopping.is_set() else room_for(facts, entries_max))

    def pause_s(self) -> float:
        """A fallback that comes back should not be missed for long."""
        return self.period_s if self._allowance.breaker_left else self.period_s / 5


def read_budget(client: redis.Redis, keys: Keys) -> dict[str, float]:
    """Reads the budget's sums of the last window; empty when no AMN worker settled in two windows."""
    found = cast("dict[bytes, bytes]", client.hgetall(budget_key(keys)))
    return {name.decode(): float(value) for name, value in found.items()}
