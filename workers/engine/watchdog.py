"""Ends a worker that hangs, or that outlives its pool: whoever looks after it starts another one."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from workers.engine.loop import Loop

_LOG = structlog.get_logger("amn.worker")
#: The code that such a worker ends with; sysexits.h calls it an internal software error.
EXIT_CODE = 70
#: Share of `stall_ms` for entries that were delivered before: an eighth of a micro-batch is computed.
_SUSPECTS_SHARE = 0.25
#: A worker whose pool is gone is told to stop, and ends after this if it does not.
_LEAVE_S_MAX = 10.0
#: A thread in native code that never lets go of the interpreter stops the thread that checks here as
#: well. Python's own watchdog, which needs no interpreter, ends the process after so many stalls.
_HELD_STALLS = 3


class Watchdog:
    """Checks the loop's progress, again and again, from a side thread.

    Only time that counts against the loop is counted: not the time for which the whole process was
    stopped, and not the time for which the loop's thread waited for a core, where the system tells.
    Python's own watchdog knows no such difference: a process that is stopped for longer than that one
    waits ends when it goes on. It has lost its leases by then.

    Args:
        loop: The worker's.
        period_s: How often `check` is called.
        end: Takes the reason, and does not return; a test's may.
    """

    def __init__(self, loop: Loop, period_s: float, end: Callable[[str], None] | None = None) -> None:
        self._loop = loop
        self._period_s = period_s
        self._end = end or self._end_process
        self._stall_s = loop.queue.settings.queue.stall_ms / 1000
        self._parent_pid = loop.queue.settings.parent_pid
        self._checked_at_s: float | None = None
        self._starved_s = 0.0
        self._progress = -1
        self._still_s = self._orphan_s = 0.0

    def check(self, now_s: float) -> None:
        """Ends the worker when it is time, by the monotonic clock."""
        counted_s = self._counted_s(now_s)
        if self._loop.progress == self._progress:
            self._still_s += counted_s
        else:
            self._progress, self._still_s = self._loop.progress, 0.0
        if self._parent_pid and os.getppid() != self._parent_pid:
            self._loop.stop()
            self._orphan_s += counted_s
        if self._still_s > self._stall_s * (_SUSPECTS_SHARE if self._loop.suspecting else 1.0):
            self._end("worker_hangs")
        elif self._orphan_s > _LEAVE_S_MAX:
            self._end("orphan_does_not_stop")

    def arm(self) -> None:
        """Winds up Python's own watchdog, for the case that `check` cannot be called any more."""
        faulthandler.dump_traceback_later(_HELD_STALLS * self._stall_s, exit=True)

    def disarm(self) -> None:
        """Stops it: a worker that ends in order needs no watchdog."""
        faulthandler.cancel_dump_traceback_later()

    def _counted_s(self, now_s: float) -> float:
        starved_s = _starved_s(self._loop.thread_id)
        waited_s, self._starved_s = starved_s - self._starved_s, starved_s
        passed_s = 0.0 if self._checked_at_s is None else now_s - self._checked_at_s
        self._checked_at_s = now_s
        return max(0.0, min(passed_s, 2 * self._period_s) - waited_s)

    def _end_process(self, why: str) -> None:
        ids = [entry.id.decode() for entry in self._loop.in_hand]
        name, for_s = self._loop.queue.name, round(self._still_s, 1)
        _LOG.error(why, worker=name, for_s=for_s, entries=len(ids), first=ids[:8])
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        os._exit(EXIT_CODE)


def _starved_s(thread_id: int) -> float:
    """For how long this thread was ready to run and had no core; 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/self/task/{thread_id}/schedstat").read_text().split()[1]) / 1e9
    return 0.0
