"""The sender's own findings: the judge's heartbeat, its own deliveries, and the server itself.

Judge, states and receipts live on the queue's server, so that its own failure is the one alert that would
never be told. The sender tells it by itself, from memory: a trigger to every sink that wants pages, again
until it is accepted, and a resolve when the server takes writes again. The id of the alert is always the
same, so that receivers know a repeat, also that of another sender; Slack does not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ops.alerts.alert import Alert, fingerprint
from ops.alerts.attempts import Attempts
from ops.alerts.config import Sinks
from ops.alerts.receipts import Owed, Receipt, compare
from ops.alerts.settings import AlertSettings
from ops.clock import span
from ops.findings import Finding, State, service_finding

RULES = ("judge_dead", "delivery_failed")
#: A message that was given up is an alert for this long.
GIVEN_UP_FOR_MS = 6 * 3_600_000
_SERVER_RULE = "server_down"


class ServerDown:
    """Watches over the sender's own commands.

    Args:
        queue: Name of the queue whose server it is.
    """

    def __init__(self, queue: str, sinks: Sinks) -> None:
        self._queue, self._sinks = queue, sinks
        self._attempts = Attempts(queue, sinks, _now_ms)
        self._down_since_s: float | None = None
        self._alert: Alert | None = None
        self._receipts: dict[str, Receipt] = {}

    def well(self) -> None:
        """The server did what was asked: sinks that were told otherwise are told so."""
        self._down_since_s = None
        if self._alert is None:
            return
        if self._alert.phase != "ok":
            said = "the server takes writes again"
            self._alert = replace(self._alert, phase="ok", resolved_ms=_now_ms(), latest=said)
        if not self._tell(self._alert):
            self._alert, self._receipts = None, {}

    def failed(self, error: str) -> None:
        """The server did not do what was asked: that is told once it has lasted."""
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
            id=fingerprint(environment, _SERVER_RULE, "", ""),
            incident=str(now_ms),
            rule=_SERVER_RULE,
            severity="page",
            summary=f"the server of the queue does not do what is asked: {error}",
            runbook=_SERVER_RULE,
            source="sender",
            phase="firing",
            since_ms=now_ms - for_ms,
            fired_ms=now_ms,
            told_ms=1,  # long ago: the secondary sinks are told when no primary one accepts at once
        )

    def _tell(self, alert: Alert) -> bool:
        """Tells the primary sinks, and then the secondary ones of what none accepted; True if some wait."""
        for _ in range(2):
            owed = compare(self._sinks.last, [alert], self._receipts, _now_ms())
            self._receipts = {one.name: one.receipt for one in owed}
            self._attempts.make(owed, _now_ms(), self._keep)
        return any(one.owed for one in self._receipts.values())

    def _keep(self, one: Owed, receipt: Receipt, _said: object) -> bool:
        self._receipts[one.name] = receipt
        return True


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def counted(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leaves out messages about failed deliveries: the sink that is broken cannot take those either."""
    return [one for one in messages if one["rule"] != "delivery_failed"]


def judge_dead(heard_ms: int, now_ms: int, settings: AlertSettings) -> Finding:
    """`judge_dead`: no evaluation is finished any more, so that nothing else can fire.

    A heartbeat from the future is of before the server's clock went back, and no sign of life: a judge
    that lives evaluates anew within seconds. It is asked for twice, as a step of the clock, which makes
    the last heartbeat old or future at once, is no death.
    """
    silent_ms = now_ms - heard_ms
    if heard_ms == 0:
        return _finding("judge_dead", "insufficient", "no judge has ever evaluated here")
    if 0 <= silent_ms <= settings.judge_silent_ms:
        return _finding("judge_dead", "ok", f"the judge was heard {span(silent_ms)} ago")
    when = f"{span(silent_ms)} ago" if silent_ms > 0 else "before the server's clock went back"
    text = f"the judge was last heard {when}; nothing is judged"
    firing = _finding("judge_dead", "firing", text, silent_s=max(silent_ms, 0) // 1000)
    return replace(firing, evaluations=2)


def delivery_failed(
    undelivered: Sequence[dict[str, Any]],
    dead: Sequence[dict[str, Any]],
    now_ms: int,
    settings: AlertSettings,
    trouble: str = "",
) -> Finding:
    """`delivery_failed`: a sink does not take its messages, or the sinks cannot be read any more.

    Args:
        undelivered: Messages under way, as `Books.undelivered`.    dead: Those given up, as `books.log`.
        trouble: Why the sinks cannot be read anew; see `Sinks`.
    """
    late = [one for one in counted(undelivered) if now_ms - one["owed_ms"] > settings.late_ms]
    gone = counted(dead)
    if not late and not gone and not trouble:
        return _finding("delivery_failed", "ok", "every message was accepted, or is on its way")
    text = f"the sinks cannot be read any more, and those of before are used: {trouble}"
    if not trouble:
        sinks = sorted({one["sink"] for one in [*late, *gone]})
        errors = [one["error"] for one in late] + [one["detail"] for one in gone]
        text = f"{len(late)} messages are late and {len(gone)} were given up; sinks: {', '.join(sinks)}"
        text += f"; last error: {errors[-1]}" if errors[-1] else ""
    return _finding("delivery_failed", "firing", text, late=len(late), dead=len(gone))


def _finding(rule: str, state: State, summary: str, **values: int) -> Finding:
    return service_finding(rule, "ticket", state, summary, values, evaluations=1)
