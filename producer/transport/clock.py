"""The server's clock as this process knows it: deadlines are compared with that one, and with no other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

#: A producer asks so often, on the connection that waits for answers.
_EVERY_S = 5.0


class ServerClock:
    """The server's wall clock: a monotonic clock here, and an offset that is measured now and then.

    A step of this machine's wall clock changes nothing; a step of the server's counts from the next
    measurement on. Until it is `known` by a first one, the wall clock here has to do.
    """

    def __init__(
        self, monotonic_s: Callable[[], float] | None = None, wall_s: Callable[[], float] = time.time
    ) -> None:
        if monotonic_s is None:  # one that goes on while this machine sleeps, where the system has it
            boot = getattr(time, "CLOCK_BOOTTIME", None)
            monotonic_s = time.monotonic if boot is None else partial(time.clock_gettime, boot)
        self._monotonic_s, self._wall_s = monotonic_s, wall_s
        self.known, self._ahead_ms = False, 0.0
        self._asked_at_s = -math.inf

    @property
    def offset_ms(self) -> float:
        """The time that the wall clock here is ahead of the server's; 0 until that is known."""
        return self._wall_s() * 1000 - self.now_ms()

    def now_ms(self) -> float:
        """UTC epoch milliseconds."""
        if not self.known:
            return self._wall_s() * 1000
        return self._monotonic_s() * 1000 + self._ahead_ms

    @property
    def due(self) -> bool:
        """True when the server should be asked again."""
        return self._monotonic_s() - self._asked_at_s > _EVERY_S

    def asks(self) -> float:
        """To be called just before TIME is sent; what it returns goes to `measured`."""
        self._asked_at_s = self._monotonic_s()
        return self._asked_at_s

    def measured(self, asked_at_s: float, answer: object) -> None:
        """Takes in the server's answer to TIME, which it gave somewhere between `asked_at_s` and now.

        The offset stays as long as it agrees with that: a slow answer says less than a quick one, and the
        refusal to a user who may not ask says nothing.
        """
        if not isinstance(answer, list | tuple) or len(answer) != 2:
            return
        half_s = (self._monotonic_s() - asked_at_s) / 2
        ahead_ms = time_ms(answer) - (asked_at_s + half_s) * 1000
        if not self.known or abs(ahead_ms - self._ahead_ms) > half_s * 1000:
            self.known, self._ahead_ms = True, ahead_ms


def time_ms(answer: Sequence[Any]) -> float:
    """Epoch milliseconds of the server's answer to TIME."""
    seconds, micros = answer
    return int(seconds) * 1000 + int(micros) / 1000
