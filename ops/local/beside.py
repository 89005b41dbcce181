"""A process that runs beside the workers of `amn up`, and is started again when it ends."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from workers.pool.child import Child, our_environment, our_python
from workers.pulse import silence_s_max

_PAUSE_S = 5.0
_STOP_S_MAX = 15.0


class Beside:
    """A command of ours, started again when it ends by itself, at most once in `_PAUSE_S`.

    Attributes:
        name: Name for people.    child: Its process at the moment.
    """

    def __init__(self, name: str, words: Sequence[str], url: str, log: Path | None) -> None:
        self.name = name
        self._command, self._environment = our_python("ops.cli", *words), our_environment(REDIS_URL=url)
        self._log, self._said, self._silence_s_max = log, "", silence_s_max()
        self.child = self._start()

    def poll(self) -> str:
        """Starts it again when it is dead or hangs; returns why, when that is news."""
        hangs = self.child.silent_s() > self._silence_s_max
        if (self.child.alive and not hangs) or self.child.age_s <= _PAUSE_S:
            return ""
        if hangs:
            self.child.end(0)
        why = f"{self.name} gave no sign for {self._silence_s_max:.0f} s, and was killed"
        before, self._said = self._said, why if hangs else self.child.exit_reason()
        self.child.end(0)
        self.child = self._start()
        return self._said if self._said != before else ""

    def _start(self) -> Child:
        return Child(self.name, self._command, self._environment, self._log)

    def stop(self) -> None:
        """SIGTERM, a grace time, then SIGKILL. Idempotent."""
        self.child.leave()
        self.child.end(_STOP_S_MAX)


def unless_ignored(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> None:
    """Installs a handler, but not for SIGHUP where that is ignored: `nohup` is to hold."""
    for number in numbers:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
