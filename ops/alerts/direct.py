"""Messages that the server cannot keep: that it is away itself, or takes no writes.

Judge, states and messages live on the queue's server, so that its own failure is the one alert that
would never be told. The sender tells it by itself, from memory: a trigger to every sink that wants
pages, again until it is accepted, and a resolve when the server takes writes again. The id of the alert
is always the same, so that receivers know a repeat, also that of another sender; Slack does not.
"""

from __future__ import annotations

import time
from dataclasses import replace

import structlog

from ops.alerts.alert import Alert, Kind, Message, fingerprint
from ops.alerts.config import AlertsConfig, Sinks
from ops.alerts.sinks.base import Sink, SinkMessage

_LOG = structlog.get_logger("amn.alerts")
RULE = "server_down"
_AGAIN_S, _REPEAT_S = 15.0, 60.0


class Direct:
    """Watches over the sender's own commands.

    Args:
        queue: Whose server it is.
    """

    def __init__(self, queue: str, sinks: Sinks) -> None:
        self._queue, self._sinks = queue, sinks
        self._down_since_s: float | None = None
        self._alert: Alert | None = None
        self._told: dict[str, float] = {}
        self._heard = False
        self._tried_at_s = 0.0

    def well(self) -> None:
        """The server did what was asked: whoever was told otherwise learns it."""
        self._down_since_s = None
        if self._alert is None or not self._due():
            return
        now_ms = time.time_ns() // 1_000_000
        ended = replace(self._alert, phase="ok", resolved_ms=now_ms, latest="the server takes writes again")
        config = self._sinks.now()
        for name in list(self._told):
            sink = config.sinks.get(name)
            if sink is None or self._settles(sink, "resolve", ended, config):
                del self._told[name]
        if not self._told:
            self._alert, self._heard = None, False

    def failed(self, error: str) -> None:
        """It did not; told once that has lasted."""
        now_s = time.monotonic()
        self._down_since_s = self._down_since_s or now_s
        config = self._sinks.last
        if (now_s - self._down_since_s) * 1000 < config.settings.server_silent_ms or not self._due():
            return
        config = self._sinks.now()
        alert = self._alert = self._alert or self._fired(config, error, now_s - self._down_since_s)
        for primary in (True, False):  # the secondary ones when no primary one has accepted
            if not primary and self._heard:
                return
            for name, sink in config.sinks.items():
                if sink.secondary is primary or not sink.wants("trigger", "page"):
                    continue
                told = self._told.get(name)
                due = told is None or (sink.repeats_state and now_s - told >= _REPEAT_S)
                if due and self._settles(sink, "trigger", alert, config):
                    self._told[name] = now_s

    def _due(self) -> bool:
        """Returns True at once, and then every quarter of a minute while something is left to do."""
        now_s = time.monotonic()
        if now_s - self._tried_at_s < _AGAIN_S and self._tried_at_s:
            return False
        self._tried_at_s = now_s
        return True

    def _fired(self, config: AlertsConfig, error: str, for_s: float) -> Alert:
        now_ms = time.time_ns() // 1_000_000
        environment = f"{config.settings.environment}/{self._queue}"
        return Alert(
            id=fingerprint(environment, RULE, "", ""),
            rule=RULE,
            severity="page",
            summary=f"the server of the queue does not do what is asked: {error}",
            runbook=RULE,
            source="sender",
            phase="firing",
            since_ms=now_ms - int(for_s * 1000),
            fired_ms=now_ms,
            told_ms=now_ms,
        )

    def _settles(self, sink: Sink, kind: Kind, alert: Alert, config: AlertsConfig) -> bool:
        name = f"{alert.id[:8]}-{alert.since_ms}-{kind}"
        message = Message(id=name, kind=kind, at_ms=time.time_ns() // 1_000_000, alert=alert)
        answer = sink.send(
            SinkMessage(message=message, now_ms=message.at_ms, queue=self._queue, settings=config.settings)
        )
        _LOG.warning(
            "server_alert_told", sink=sink.name, told=kind, answer=answer.outcome, detail=answer.detail
        )
        self._heard = self._heard or answer.outcome == "accepted"
        return answer.outcome != "again"
