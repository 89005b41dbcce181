"""The side thread of an AMN worker: budget and fallback, once a second."""

from __future__ import annotations

from amn.gate.escalation import Allowance
from amn.policy import ACCURACY, EscalationPolicy
from workers.gate.budget import LoadLimits, SharedBudget
from workers.gate.tiers import TierWatch
from workers.settings import WorkerSettings
from workers.side import SideThread


class GateThread(SideThread):
    """Settles the budget, and follows the first fallback tier."""

    name = "gate"
    at_end = True

    def __init__(self, settings: WorkerSettings, policy: EscalationPolicy, allowance: Allowance) -> None:
        super().__init__(settings)
        self._policy, self._allowance, self._limits = policy, allowance, LoadLimits()
        self._budget = SharedBudget(self.client, self.keys, policy, allowance)
        self._watch = TierWatch(self.client, self.keys, ACCURACY)

    def take_turn(self, now_s: float) -> None:
        """Makes one settlement; the last one hands back what is not used."""
        facts = self._watch.update(now_s)
        self._allowance.breaker_left = self._watch.breaker.let_through if self._policy.chain.tiers else 0
        # A worker that leaves wants nothing more, so that what it holds goes back to the others.
        entries_max = self.settings.queue.fallback_entries_max
        self._budget.settle(0.0 if self.stopping.is_set() else self._limits.room(facts, entries_max))

    def pause_s(self) -> float:
        """A fallback that comes back should not be missed for long."""
        return self.period_s if self._allowance.breaker_left else self.period_s / 5
