"""The server's clock as this process knows it: deadlines are compared with that one, and with no other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

#: A producer asks so often, on the connection that waits for answers; and at first a few times in a row.
_EVERY_S = 5.0
_AT_FIRST = 4
#: Two clocks run apart by hardly more, so that an earlier answer says less the older it is.
_DRIFT = 2e-5


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
        self._least_ms, self._most_ms = -math.inf, math.inf
        self._asked_at_s, self._measured_at_s, self._asked = -math.inf, 0.0, 0

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
        return self._asked < _AT_FIRST or self._monotonic_s() - self._asked_at_s > _EVERY_S

    def asks(self) -> float:
        """To be called just before TIME is sent; what it returns goes to `measured`."""
        self._asked += 1
        self._asked_at_s = self._monotonic_s()
        return self._asked_at_s

    def measured(self, asked_at_s: float, answer: object) -> None:
        """Takes in the server's answer to TIME, which it gave somewhere between `asked_at_s` and now.

        So each answer bounds the offset on both sides, and the bounds of several answers together are far
        closer than a round trip. Where they contradict each other, a clock was set, and the last one counts.
        The refusal to a user who may not ask says nothing.
        """
        if not isinstance(answer, list | tuple) or len(answer) != 2:
            return
        now_s, server_ms = self._monotonic_s(), time_ms(answer)
        aged_ms = _DRIFT * (now_s - self._measured_at_s) * 1000
        least_ms = max(server_ms - now_s * 1000, self._least_ms - aged_ms)
        most_ms = min(server_ms - asked_at_s * 1000, self._most_ms + aged_ms)
        if least_ms > most_ms:
            least_ms, most_ms = server_ms - now_s * 1000, server_ms - asked_at_s * 1000
        self._least_ms, self._most_ms, self._measured_at_s = least_ms, most_ms, now_s
        self.known, self._ahead_ms = True, (least_ms + most_ms) / 2


def time_ms(answer: Sequence[Any]) -> float:
    """Epoch milliseconds of the server's answer to TIME."""
    seconds, micros = answer
    return int(seconds) * 1000 + int(micros) / 1000
