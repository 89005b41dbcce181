"""The side thread of a shadow worker: the sampling rates each minute, the canary each hour."""

from __future__ import annotations

import threading
import time

import structlog

from producer.connection import connect, driver_errors
from producer.errors import QueueError, ServerError
from producer.keys import Keys
from workers.canary import Canary, FrozenSet, sample_file
from workers.settings import WorkerSettings
from workers.shadow_rates import Steering
from workers.shadow_settings import ShadowSettings

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
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="amn-shadow-turns", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it; a canary that runs is not waited for."""
        self._stopping.set()
        self._thread.join(timeout=2)
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

    def _run(self) -> None:
        down = False
        while not self._stopping.wait(_PERIOD_S):
            try:
                self.turn(time.monotonic())
                down = False
            except QueueError as error:
                if not down or not isinstance(error, ServerError):
                    _LOG.warning("shadow_turn_failed", error=str(error))
                down = True
