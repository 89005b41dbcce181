"""The side threads of a worker: each does one thing again and again, whatever happens."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod

import structlog

from producer.errors import QueueError, ServerError
from producer.keys import Keys
from producer.transport.connection import connect, driver_errors
from workers.settings import WorkerSettings

_LOG = structlog.get_logger("amn.worker")


class SideThread(ABC):
    """A thread with a connection of its own that takes a turn, pauses, and takes the next one.

    What a turn raises is one line in the log when it begins, and the next turn comes all the same: a
    server that is away returns, and so may whatever else was wrong.

    Attributes:
        name: For the thread and the log.
        period_s: Pause between two turns.
        at_once: Whether the first turn comes before the first pause.
        at_end: Whether a last one comes when it is told to stop.
        stop_s: How long `stop` waits for the turn at hand.
        stopping: Set when it was told to stop.
    """

    name = "side"
    period_s = 1.0
    at_once = at_end = False
    stop_s = 5.0

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.keys = Keys(settings.producer.queue)
        self.client = connect(settings.producer)
        self.stopping = threading.Event()
        self._failing = ""
        self._thread = threading.Thread(target=self._run, name=f"amn-{self.name}", daemon=True)

    @abstractmethod
    def take_turn(self, now_s: float) -> None:
        """Does it once; `now_s` is the monotonic clock. Errors of the driver are translated."""

    def pause_s(self) -> float:
        """The pause before the next turn."""
        return self.period_s

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it after the turn at hand, and closes the connection."""
        self.stopping.set()
        if self._thread.ident is not None:
            self._thread.join(self.stop_s)
        self.client.close()

    def turn(self, now_s: float | None = None) -> None:
        """Takes one turn.

        Raises:
            ServerError: The server is away.
        """
        with driver_errors(self.settings.producer.url):
            self.take_turn(time.monotonic() if now_s is None else now_s)

    def turn_safely(self) -> None:
        """Takes one turn; what it raises is logged, once in a row."""
        try:
            self.turn()
            self._failing = ""
        except Exception as error:
            how = "waits_for_server" if isinstance(error, ServerError) else "failed"
            if how != self._failing:
                unforeseen = not isinstance(error, QueueError)
                _LOG.warning(f"{self.name}_{how}", error=str(error), exc_info=unforeseen)
            self._failing = how

    def _run(self) -> None:
        if self.at_once:
            self.turn_safely()
        while not self.stopping.wait(self.pause_s()):
            self.turn_safely()
        if self.at_end:
            self.turn_safely()
