"""The side thread of an AMN worker: the budget and the fallback, looked at once a second."""

from __future__ import annotations

import threading
import time

import structlog

from amn.escalation import Allowance
from amn.policy import ACCURACY, EscalationPolicy
from producer.connection import connect, driver_errors
from producer.errors import ServerError
from producer.keys import Keys
from workers.budget import LoadLimits, SharedBudget
from workers.settings import WorkerSettings
from workers.tiers import PERIOD_S, TierWatch

_LOG = structlog.get_logger("amn.gate")


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
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="amn-gate", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Settles a last time, hands back what is not used, and ends."""
        self._stopping.set()
        self._thread.join(timeout=5)
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
            leaving = self._stopping.is_set()
            self._budget.settle(0.0 if leaving else self._limits.room(facts, entries_max))

    def _run(self) -> None:
        down = False
        while True:
            # A fallback that comes back should not be missed for long.
            stopping = self._stopping.wait(PERIOD_S if self._allowance.doors else PERIOD_S / 5)
            try:
                self.look(time.monotonic())
                down = False
            except ServerError as error:
                if not down:
                    _LOG.warning("gate_waits_for_server", error=str(error))
                down = True
            if stopping:
                return
