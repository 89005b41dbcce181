"""The side thread of a shadow worker: the sampling rates each minute, the canary each hour."""

from __future__ import annotations

import time

import structlog

from workers.settings import WorkerSettings
from workers.shadow.canary import Canary, FrozenSet, sample_file
from workers.shadow.rates import Steering
from workers.shadow.settings import ShadowSettings
from workers.side import SideThread

_LOG = structlog.get_logger("amn.worker")
#: After a canary that nobody answered.
_CANARY_AGAIN_MS = 300_000


class ShadowTurns(SideThread):
    """Does what is to be done now and then by one of the shadow workers, whichever comes first."""

    name = "shadow_turns"
    period_s = 10.0
    stop_s = 2.0  # a canary that runs is not waited for

    def __init__(self, settings: WorkerSettings, shadow: ShadowSettings) -> None:
        super().__init__(settings)
        self._steering = Steering(self.client, self.keys, shadow)
        self._canary: Canary | None = None
        self._canary_ms = shadow.canary_ms
        if sample_file().is_file():
            self._canary = Canary(self.client, settings.producer, FrozenSet.load(sample_file()))
        else:
            _LOG.warning("canary_missing", sample=str(sample_file()))
        self._canary_from_s = time.monotonic() + shadow.canary_after_s

    def take_turn(self, now_s: float) -> None:
        """Steers the rates, and runs the canary when it is due."""
        self._steering.turn()
        if self._canary is None or now_s < self._canary_from_s or not self._canary.claim(self._canary_ms):
            return
        result = None
        try:
            result = self._canary.run()
        finally:
            if result is None:
                self._canary.postpone(_CANARY_AGAIN_MS)
        if result is None:
            _LOG.warning("canary_unanswered")
        else:
            _LOG.info("canary_replayed", model=result.model, n=result.n, max_change=result.max_change)
