"""Back-off while the server is away, and one log line an outage. No I/O and no sleep."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

_LOG = logging.getLogger("amn.producer")
PAUSE_MS_MIN, PAUSE_MS_MAX = 20.0, 1_000.0


class Outage:
    """Logs the beginning and the end of an outage of one activity, and nothing between."""

    def __init__(self, activity: str, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._activity, self._clock_s = activity, clock_s
        self.lasts, self._began_at_s = False, 0.0

    def failed(self, error: Exception) -> None:
        """Notes a failure."""
        if not self.lasts:
            self.lasts, self._began_at_s = True, self._clock_s()
            _LOG.warning("%s_waits_for_server: %s", self._activity, error)

    def over(self) -> None:
        """Notes a success."""
        if self.lasts:
            self.lasts = False
            _LOG.warning(
                "%s_resumed: after %.0f ms", self._activity, (self._clock_s() - self._began_at_s) * 1000
            )


def pause_ms(failures: int) -> float:
    """The pause after so many failures in a row: 20 ms, doubled with each, up to a second."""
    return min(PAUSE_MS_MIN * 2.0 ** min(failures - 1, 10), PAUSE_MS_MAX)
