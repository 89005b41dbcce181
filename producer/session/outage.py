"""Back-off while the server is away, and one log line per outage. No I/O and no sleep."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

_LOG = logging.getLogger("amn.producer")
PAUSE_MS_MIN, PAUSE_MS_MAX = 20.0, 1_000.0


class Outage:
    """Logs the beginning and the end of an outage of one activity, and nothing between.

    Attributes:
        lasts: Whether one was noted that is not over.
    """

    def __init__(self, activity: str, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._activity = activity
        self._clock_s = clock_s
        self.lasts, self._began_at_s = False, 0.0

    def failed(self, error: Exception) -> None:
        """Notes a failure."""
        if not self.lasts:
            self.lasts, self._began_at_s = True, self._clock_s()
            _LOG.warning("%s_waits_for_server: %s", self._activity, error)

    def over(self) -> None:
        """Notes a success."""
        if self.lasts:
            lasted_ms = (self._clock_s() - self._began_at_s) * 1000
            self.lasts = False
            _LOG.warning("%s_resumed: after %.0f ms", self._activity, lasted_ms)


class Backoff:
    """Pauses of 20 ms, doubled with each failure in a row, up to a second."""

    __slots__ = ("_clock_s", "_first_at_s", "_pause_ms")

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._first_at_s: float | None = None
        self._pause_ms = PAUSE_MS_MIN

    def reset(self) -> None:
        """Notes a success."""
        self._first_at_s, self._pause_ms = None, PAUSE_MS_MIN

    @property
    def lasts_ms(self) -> float:
        """Since the first failure in a row; 0 after a success."""
        return 0.0 if self._first_at_s is None else (self._clock_s() - self._first_at_s) * 1000

    def next_ms(self) -> float:
        """Counts one more failure, and returns the pause after it."""
        if self._first_at_s is None:
            self._first_at_s = self._clock_s()
        pause_ms, self._pause_ms = self._pause_ms, min(2 * self._pause_ms, PAUSE_MS_MAX)
        return pause_ms
