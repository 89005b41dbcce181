"""The side thread of a shadow worker: the sampling rates each minute, the canary each hour."""

from __future__ import annotations

import time

import structlog

from producer.keys import Keys
from producer.transport.connection import connect, driver_errors
from workers.settings import WorkerSettings
from workers.shadow.canary import Canary, FrozenSet, sample_file
from workers.shadow.rates import Steering
from workers.shadow.settings import ShadowSettings
from workers.side import SideThread

_LOG = structlog.get_logger("amn.worker")
_PERIOD_S = 10.0
#: After a canary that nobody answered.
_CANARY_AGAIN_MS = 300_000


class ShadowTurns:
    """What has to be done now and then by one of the shadow workers, whichever comes first."""

    def __init__(self, settings: WorkerSettings, shadow: ShadowSettings) -> None:
        self._url = settings.producer.url
        self._client = connect(settings.producer, retries=0)
        self._steering = Steering(self._client, Keys(settings.producer.queue), shadow)
        self._canary: Canary | None = None
        self._canary_ms = shadow.canary_ms
        if sample_file().is_file():
            self._canary = Canary(self._client, settings.producer, FrozenSet.load(sample_file()))
        else:
            _LOG.warning("canary_missing", sample=str(sample_file()))
        self._canary_from_s = time.monotonic() + shadow.canary_after_s
        self._thread = SideThread("shadow_turns", self._turn, lambda: _PERIOD_S)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it; a canary that runs is not waited for."""
        self._thread.stop(timeout_s=2.0)
        self._client.close()

    def turn(self, now_s: float) -> None:
        """One look.

        Args:
            now_s: Monotonic clock.

        Raises:
            QueueError: The server is away, or too full for a canary.
        """
        with driver_errors(self._url):
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

    def _turn(self) -> None:
        self.turn(time.monotonic())
