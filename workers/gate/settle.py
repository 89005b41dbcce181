"""The side thread of an AMN worker: the budget and the fallback, looked at once a second."""

from __future__ import annotations

import time

from amn.gate.escalation import Allowance
from amn.policy import ACCURACY, EscalationPolicy
from producer.keys import Keys
from producer.transport.connection import connect, driver_errors
from workers.gate.budget import LoadLimits, SharedBudget
from workers.gate.tiers import PERIOD_S, TierWatch
from workers.settings import WorkerSettings
from workers.side import SideThread


class GateThread:
    """Settles the budget, and watches the first fallback tier."""

    def __init__(self, settings: WorkerSettings, policy: EscalationPolicy, allowance: Allowance) -> None:
        self._settings = settings
        self._policy = policy
        self._allowance = allowance
        self._keys = Keys(settings.producer.queue)
        self._client = connect(settings.producer, retries=0)
        self._limits = LoadLimits()
        self._budget = SharedBudget(self._client, self._keys, policy, allowance)
        self._watch = TierWatch(self._client, self._keys, ACCURACY)
        self._thread = SideThread("gate", self._turn, self._pause_s, at_end=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Settles a last time, hands back what is not used, and ends."""
        self._thread.stop()
        self._client.close()

    def look(self, now_s: float) -> None:
        """One settlement.

        Raises:
            ServerError: The server is away.
        """
        with driver_errors(self._settings.producer.url):
            facts = self._watch.look(now_s)
            self._allowance.doors = self._watch.breaker.doors if self._policy.chain.tiers else 0
            entries_max = self._settings.queue.fallback_entries_max
            # Who leaves wants nothing more, so that what it holds goes back to the others.
            room = 0.0 if self._thread.stopping else self._limits.room(facts, entries_max)
            self._budget.settle(room)

    def _turn(self) -> None:
        self.look(time.monotonic())

    def _pause_s(self) -> float:
        # A fallback that comes back should not be missed for long.
        return PERIOD_S if self._allowance.doors else PERIOD_S / 5
