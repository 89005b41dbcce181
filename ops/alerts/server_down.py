"""The alert that the server cannot keep: that it is away itself, or takes no writes.

Judge, states and receipts live on the queue's server, so that its own failure is the one alert that would
never be told. The sender tells it by itself, from memory: a trigger to every sink that wants pages, again
until it is accepted, and a resolve when the server takes writes again. The id of the alert is always the
same, so that receivers know a repeat, also that of another sender; Slack does not.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace

import structlog

from ops.alerts.alert import Alert, fingerprint
from ops.alerts.config import Sinks
from ops.alerts.receipts import Owed, Receipt, begun, compare, noted, settled
from ops.alerts.sinks.base import Message

_LOG = structlog.get_logger("amn.alerts")
RULE = "server_down"
_REPEAT_MS = 60_000


class ServerDown:
    """Watches over the sender's own commands.

    Args:
        queue: Name of the queue whose server it is.
    """

    def __init__(self, queue: str, sinks: Sinks) -> None:
        self._queue, self._sinks = queue, sinks
        self._down_since_s: float | None = None
        self._alert: Alert | None = None
        self._receipts: dict[str, Receipt] = {}

    def well(self) -> None:
        """The server did what was asked: whoever was told otherwise learns it."""
        self._down_since_s = None
        if self._alert is None:
            return
        if self._alert.phase != "ok":
            said = "the server takes writes again"
            self._alert = replace(self._alert, phase="ok", resolved_ms=_now_ms(), latest=said)
        self._tell(self._alert)
        if not any(one.kind for one in self._compared(self._alert)):
            self._alert, self._receipts = None, {}

    def failed(self, error: str) -> None:
        """It did not; told once that has lasted."""
        now_s = time.monotonic()
        self._down_since_s = self._down_since_s or now_s
        for_ms = int((now_s - self._down_since_s) * 1000)
        if for_ms < self._sinks.last.settings.server_silent_ms:
            return
        if self._alert is None or self._alert.phase == "ok":
            self._alert, self._receipts = self._fired(error, for_ms), {}
        self._tell(self._alert)

    def _fired(self, error: str, for_ms: int) -> Alert:
        now_ms = _now_ms()
        environment = f"{self._sinks.now().settings.environment}/{self._queue}"
        return Alert(
            id=fingerprint(environment, RULE, "", ""),
            incident=str(now_ms),
            rule=RULE,
            severity="page",
            summary=f"the server of the queue does not do what is asked: {error}",
            runbook=RULE,
            source="sender",
            phase="firing",
            since_ms=now_ms - for_ms,
            fired_ms=now_ms,
            told_ms=1,  # long ago: the secondary sinks are told when no primary one accepts at once
        )

    def _tell(self, alert: Alert) -> None:
        for secondary in (False, True):
            for one in self._compared(alert):
                if one.kind and one.sink.secondary is secondary and not one.receipt.waits(_now_ms()):
                    self._receipts[one.name] = self._attempt(one)

    def _compared(self, alert: Alert) -> list[Owed]:
        now_ms = _now_ms()
        if alert.phase != "ok":
            for name, sink in self._sinks.last.sinks.items():
                told = self._receipts.get(f"{name}|{alert.name}", Receipt())
                if sink.repeats_state and not told.owed and not 0 <= now_ms - told.tried_ms < _REPEAT_MS:
                    self._receipts.pop(f"{name}|{alert.name}", None)
        compared = compare(self._sinks.last, [alert], self._receipts, now_ms)
        return [replace(one, receipt=noted(one, now_ms)) for one in compared]

    def _attempt(self, one: Owed) -> Receipt:
        one = replace(one, receipt=begun(one.receipt, _now_ms(), random.random()))  # noqa: S311
        settings = self._sinks.now().settings
        message = Message(
            kind=one.kind, alert=one.alert, now_ms=_now_ms(), queue=self._queue, settings=settings
        )
        answer = one.sink.send(message)
        said = {"sink": one.sink.name, "told": one.kind, "answer": answer.outcome, "detail": answer.detail}
        _LOG.warning("server_alert_told", **said)
        return settled(one, answer, _now_ms(), settings)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
