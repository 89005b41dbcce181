"""Attempts to deliver what is owed, one after the other."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from ops.alerts.config import Sinks
from ops.alerts.receipts import Owed, Receipt, begun, firsts, settled
from ops.alerts.sinks.base import Message

_LOG = structlog.get_logger("amn.alerts")
#: No attempt begins later in a round, so that the server and the judge are watched all the same.
_BUSY_S = 10.0
#: Keeps a receipt, and what is said of a message that is no longer owed; False when it may not.
Keep = Callable[[Owed, Receipt, dict[str, str | int]], bool]


class Attempts:
    """Makes attempts with the sinks as they are described at each.

    Attributes:
        stopping: Set when no attempt is to begin any more.
    """

    def __init__(self, queue: str, sinks: Sinks, clock: Callable[[], int]) -> None:
        self._queue, self._sinks, self._clock = queue, sinks, clock
        #: Times between which a sink is left alone.
        self._pauses: dict[str, tuple[int, int]] = {}
        self.stopping = threading.Event()

    def make(self, owed: Sequence[Owed], now_ms: int, keep: Keep) -> int:
        """Attempts what is due; returns the number of attempts. Ends when a receipt may not be kept."""
        made, until_s = 0, time.monotonic() + _BUSY_S
        for one in firsts(owed):
            if self.stopping.is_set() or time.monotonic() >= until_s:
                break
            since_ms, until_ms = self._pauses.get(one.sink.name, (0, 0))
            if one.receipt.waits(now_ms) or since_ms <= now_ms < until_ms:
                continue
            if not self._attempt(one, now_ms, keep):
                break
            made += 1
        return made

    def _attempt(self, one: Owed, round_ms: int, keep: Keep) -> bool:
        config, now_ms = self._sinks.now(), self._clock()
        sink = config.sinks.get(one.sink.name)
        one = replace(one, receipt=begun(one.receipt, now_ms, random.random()))  # noqa: S311  (guards nothing)
        if sink is None or not keep(one, one.receipt, {}):
            return sink is None
        message = Message(
            kind=one.kind, alert=one.alert, now_ms=now_ms, queue=self._queue, settings=config.settings
        )
        answer = sink.send(message)
        now_ms = self._clock()
        self._pauses[sink.name] = (round_ms, now_ms + max(answer.wait_ms, sink.pace_ms))
        receipt = settled(one, answer, now_ms, config.settings)
        said = {"sink": sink.name, "message": message.id, "alert": one.alert.id, "rule": one.alert.rule}
        more = {"kind": one.kind, "attempt": one.receipt.attempts, "detail": answer.detail}
        accepted = answer.outcome == "accepted"
        say, event = (_LOG.info, "alert_delivered") if accepted else (_LOG.warning, "alert_not_delivered")
        say(event, next_ms=receipt.next_ms, **said, **more)
        repeats = sink.repeat_ms and (one.kind == "reminder" or one.receipt.ended)
        return keep(one, receipt, {} if receipt.owed or repeats else {**said, **more, "at_ms": now_ms})


def quiet() -> None:
    """Silences httpx and apprise, which log whole addresses; some of those are secrets."""
    for name in ("httpx", "httpcore", "apprise", "requests", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
