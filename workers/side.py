"""The side threads of a worker: each does one thing again and again, whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from producer.errors import QueueError, ServerError

_LOG = structlog.get_logger("amn.worker")


class SideThread:
    """A thread that takes a turn, pauses, and takes the next one.

    What a turn raises is one line in the log when it begins, and the next turn comes all the same: a
    server that is away returns, and so may whatever else was wrong.

    Args:
        name: For the thread and the log.
        take_turn: The turn.
        pause_s: How long until the next one.
        at_once: Whether the first turn comes before the first pause.
        at_end: Whether a last one comes when it is told to stop.
    """

    def __init__(
        self,
        name: str,
        take_turn: Callable[[], None],
        pause_s: Callable[[], float],
        *,
        at_once: bool = False,
        at_end: bool = False,
    ) -> None:
        self._name = name
        self._take_turn, self._pause_s = take_turn, pause_s
        self._at_once, self._at_end = at_once, at_end
        self._failing = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"amn-{name}", daemon=True)

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ends it after the turn at hand, which is not waited for longer than this."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def turn(self) -> None:
        """One turn."""
        try:
            self._take_turn()
            self._failing = ""
        except Exception as error:
            how = "waits_for_server" if isinstance(error, ServerError) else "failed"
            if how != self._failing:
                unforeseen = not isinstance(error, QueueError)
                _LOG.warning(f"{self._name}_{how}", error=str(error), exc_info=unforeseen)
            self._failing = how

    def _run(self) -> None:
        if self._at_once:
            self.turn()
        while not self._stopping.wait(self._pause_s()):
            self.turn()
        if self._at_end:
            self.turn()
