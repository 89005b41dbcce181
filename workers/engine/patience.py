"""Waits of a worker whose server is away or refuses, until it takes what was computed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import structlog

from producer.errors import ServerError
from producer.transport.steps import Steps
from workers.engine.entry import Outcome
from workers.errors import refused

_LOG = structlog.get_logger("amn.worker")
#: An answer that says no may be of a moment too; so often it is asked for again, for some seconds.
REFUSALS_MAX = 6
PAUSE_S, PAUSE_S_MAX = 0.05, 2.0


class Patience:
    """The waits of one worker; each outage is one line in the log.

    Attributes:
        away: Whether the server was waited for, and is not known to be back.
        given_up: Entries that the server would not let us end.

    Args:
        worker: Its name.
        stopping: Ends every wait.
    """

    def __init__(self, worker: str, stopping: threading.Event) -> None:
        self._worker, self._stopping = worker, stopping
        self.away, self.given_up = False, 0

    def wait_out(self, error: ServerError, pause_s: float, pause_s_max: float = PAUSE_S_MAX) -> float:
        """Waits for a server that is away; returns the next pause."""
        if not self.away:
            self.away = True
            _LOG.warning("worker_waits_for_server", worker=self._worker, error=str(error))
        self._stopping.wait(pause_s)
        return min(2 * pause_s, pause_s_max)

    def over(self) -> None:
        """Says that the server is back."""
        self.away = False
        _LOG.warning("worker_resumed", worker=self._worker)

    def end(
        self, outcomes: Sequence[Outcome], error: ServerError, end: Callable[[Sequence[Outcome]], None]
    ) -> None:
        """Ends outcomes, by `end`, that the server did not take all at once.

        The server is waited for while it is away, out of memory, or does not let us in: whatever was
        computed could be ended by nobody else either. What it does not take is tried again in smaller
        steps, so that an entry that cannot be ended keeps nothing but itself: it leaves the hand, and
        its lease brings it back.
        """
        left, count = outcomes, len(outcomes)
        steps, refusals = Steps(count), int(count == 1 and refused(error))
        steps.note_lost(count)
        pause_s = self.wait_out(error, PAUSE_S)
        if self._stopping.is_set():
            return
        while left:
            some = left[: steps.size]
            try:
                end(some)
            except ServerError as again:
                steps.note_lost(len(some))
                refusals += len(some) == 1 and refused(again)
                if refusals < REFUSALS_MAX:
                    pause_s = self.wait_out(again, pause_s)
                    if self._stopping.is_set():
                        return
                    continue
                self.given_up += 1
                _LOG.error("entry_not_ended", worker=self._worker, entry=some[0].entry.id.decode())
            left, pause_s = left[len(some) :], PAUSE_S
            if left:
                steps.note_came()
