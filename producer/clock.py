"""The server's clock as this process knows it: deadlines are compared with that one, and with no other."""

from __future__ import annotations

import time
from collections.abc import Callable


class ServerClock:
    """The server's wall clock: the monotonic clock here, and an offset that is measured now and then.

    A step of this machine's wall clock changes nothing; a step of the server's counts from the next
    measurement on. Until the first one, the wall clock here has to do.

    Args:
        monotonic_s, wall_s: For tests.
    """

    def __init__(
        self,
        monotonic_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic_s, self._wall_s = monotonic_s, wall_s
        self._ahead_ms: float | None = None
        self._measured_at_s = 0.0

    @property
    def known(self) -> bool:
        """Whether it was ever measured."""
        return self._ahead_ms is not None

    @property
    def offset_ms(self) -> float:
        """How far the wall clock here is ahead of the server's; 0 until that is known."""
        return self._wall_s() * 1000 - self.now_ms()

    def now_ms(self) -> float:
        """UTC epoch milliseconds."""
        if self._ahead_ms is None:
            return self._wall_s() * 1000
        return self._monotonic_s() * 1000 + self._ahead_ms

    def age_s(self) -> float:
        """Since the last measurement; since the clock began when there was none."""
        return self._monotonic_s() - self._measured_at_s

    def began_s(self) -> float:
        """The monotonic clock, just before the server is asked for its time."""
        return self._monotonic_s()

    def measured(self, began_s: float, time_ms: float) -> None:
        """Takes in the server's answer to TIME, which it gave somewhere between `began_s` and now.

        What was known stays as long as it agrees with that: a slow answer says less than a quick one.
        """
        ended_s = self._monotonic_s()
        ahead_ms = time_ms - (began_s + ended_s) * 500
        doubt_ms = (ended_s - began_s) * 500
        if self._ahead_ms is None or abs(ahead_ms - self._ahead_ms) > doubt_ms:
            self._ahead_ms = ahead_ms
        self._measured_at_s = ended_s


def time_ms(answer: tuple[int, int] | list[bytes]) -> float:
    """Epoch milliseconds of the server's answer to TIME."""
    seconds, micros = answer
    return int(seconds) * 1000 + int(micros) / 1000
