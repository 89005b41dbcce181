"""The side thread of an AMN worker that checks an approximate bank with live requests.

About one request in `recheck_one_in` is searched again, exactly, some time after its answer went out.
Fields of the stats hash that come of it, summed over all workers:

    rechecked           requests searched again
    recheck:agreed      of these, the rules decide the same        recheck:unsafe  kept, and should not be
    recheck:dropped     drawn, and left out because too many waited

A pass over half a million references reads 1.7 GB, so there is one a minute at most, for all that wait.
NumPy's products let go of the interpreter; what holds it in between takes microseconds.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter, deque

import numpy as np
from numpy.typing import NDArray

from amn.bank.agreement import drawn, recheck
from amn.bank.bank import CellBank, Neighbours
from workers.settings import WorkerSettings
from workers.side import SideThread

TURN_S = 60.0
#: Rows of one turn; about a second of one core at half a million references.
ROWS_MAX = 64
_NICER = 10


class RecheckThread(SideThread):
    """Draws, waits, searches again, counts."""

    name = "recheck"

    def __init__(
        self, settings: WorkerSettings, bank: CellBank, *, turn_s: float = TURN_S, rows_max: int = ROWS_MAX
    ) -> None:
        super().__init__(settings)
        self.period_s, self._rows_max, self._bank = turn_s, rows_max, bank
        self._waiting: deque[tuple[NDArray[np.float32], np.float32, np.float32]] = deque()
        self._dropped = self._dropped_told = 0  # each written by one thread
        self._untold: Counter[str] = Counter()
        self._nice = False

    def start(self) -> None:
        """Starts the thread, and listens to the bank."""
        self._bank.observer = self.offer
        super().start()

    def stop(self) -> None:
        """Ends; what waits is left out."""
        self._bank.observer = None
        super().stop()

    def offer(self, queries: NDArray[np.float32], found: Neighbours) -> None:
        """Takes note of queries (B, 768) and their answer; called by the thread that answers."""
        for row in drawn(queries, self.settings.recheck_one_in):
            if len(self._waiting) < self._rows_max:
                self._waiting.append((queries[row].copy(), found.best[row], found.second[row]))
            else:
                self._dropped += 1

    def take_turn(self, _: float) -> None:
        """Searches what waits again, and tells the server; what it does not get goes with the next turn."""
        if not self._nice and threading.current_thread() is self._thread:
            self._nice = True
            _be_nice()
        taken, untold = [self._waiting.popleft() for _ in range(len(self._waiting))], self._untold
        if taken:
            columns = [np.array(column, dtype=np.float32) for column in zip(*taken, strict=True)]
            found = recheck(self._bank, *columns)
            untold.update({"rechecked": found.checked, "recheck:agreed": found.agreed})
            untold["recheck:unsafe"] += found.unsafe
        dropped = self._dropped
        untold["recheck:dropped"] += dropped - self._dropped_told
        self._dropped_told = dropped
        with self.client.pipeline() as pipe:
            for name, count in (+untold).items():
                pipe.hincrby(self.keys.stats, name, count)
            pipe.execute()
        untold.clear()


def _be_nice() -> None:
    """Linux: of this thread alone. Not idle: it may hold the interpreter, which others wait for."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICER)
