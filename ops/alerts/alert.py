"""One alert as it is stored, and the states that it goes through; no clock, no server.

         a             b                c
    ok -----> pending -----> firing <-----> recovering
     ^           |                             |
     +-----------+-----------------------------+  d

a. The rule fires for the first time. b. It fired so many evaluations in a row as it asks for.
c. It rests, or fires again: one incident. d. A pending one rests at once; a recovering one after it
has rested for `hold_ms`, and not before `firing_min_ms`. Too little data moves nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self, TypeVar, get_args

import structlog

from ops.alerts.settings import AlertSettings
from ops.findings import Finding, Severity

#: "ok" is an alert that was never told, or was resolved.
Phase = Literal["ok", "pending", "firing", "recovering"]
#: The news that a message brings. "" is no message.
Kind = Literal["", "trigger", "raised", "reminder", "resolve"]
#: Ascending.
SEVERITIES: tuple[Severity, ...] = ("ticket", "page")

_LOG = structlog.get_logger("amn.alerts")
_T = TypeVar("_T")
_BYTES_MAX = 1024**2
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One rule on one series, from its first firing evaluation until some time after its end.

    Times are epoch milliseconds; 0 is never.

    Attributes:
        id: Fingerprint: the same for every incident of this rule on this series.
        incident: Name of the present incident; "" before the first.
        rule, severity, model, lane, values, runbook, beside: As `Finding`; the severity is the
            incident's worst so far.
        summary: Text of the rule when it last fired.    latest: Its last text.
        source: Who evaluates it: "judge" or "sender".
        count: Firing evaluations in a row, while pending.    counted_ms: When it last grew.
        seen_ms: Last evaluation of any outcome.
        since_ms: First evaluation of this incident that fired.
        fired_ms: When it was sure.    rests_since_ms: Since when it recovers.
        resolved_ms: When it ended.
        told_ms: When this incident last became news; 0 before it did, and after its end.
        told_severity: The severity that is to be known outside; "" before the first news.
        silence: Id of the silence that holds its news back.
    """

    id: str
    rule: str
    incident: str = ""
    model: str = ""
    lane: str = ""
    severity: Severity = "ticket"
    summary: str = ""
    latest: str = ""
    values: Mapping[str, float | int | str] = field(default_factory=dict)
    runbook: str = ""
    beside: str = ""
    source: str = "judge"
    phase: Phase = "ok"
    count: int = 0
    counted_ms: int = 0
    seen_ms: int = 0
    since_ms: int = 0
    fired_ms: int = 0
    rests_since_ms: int = 0
    resolved_ms: int = 0
    told_ms: int = 0
    told_severity: str = ""
    silence: str = ""

    def __post_init__(self) -> None:
        if self.phase not in get_args(Phase) or self.severity not in SEVERITIES:
            raise ValueError(f"no alert of this version: {self.id!r:.80}")

    @classmethod
    def of(cls, finding: Finding, environment: str, source: str) -> Self:
        """Returns the resting alert of a finding."""
        rule, model, lane = finding.identity
        name = fingerprint(environment, rule, model, lane)
        return cls(id=name, rule=rule, model=model, lane=lane, source=source)

    @property
    def name(self) -> str:
        """The name of its present incident."""
        return f"{self.id}|{self.incident}"

    def as_of(self, now_ms: int) -> Self:
        """Returns the alert; when a time in it lies in the future, all are moved back with the clock."""
        times = {name: getattr(self, name) for name in self.__slots__ if name.endswith("_ms")}
        back_ms = max(times.values()) - now_ms
        if back_ms <= 0:
            return self
        return replace(self, **{name: at_ms - back_ms for name, at_ms in times.items() if at_ms})


def fingerprint(environment: str, rule: str, model: str, lane: str) -> str:
    """32 hexadecimal digits that name an alert for ever; no number and no time is part of it."""
    return hashlib.sha256("|".join((environment, rule, model, lane)).encode()).hexdigest()[:32]


def louder(one: str, other: str) -> bool:
    """True if severity `one` is above `other`; "" is below all."""
    order = ("", *SEVERITIES)
    return order.index(one) > order.index(other)


def step(
    alert: Alert, finding: Finding | None, now_ms: int, settings: AlertSettings, silence: str = ""
) -> tuple[Alert, Kind]:
    """Returns the alert after one evaluation, and the news that it makes.

    Args:
        alert: The alert before it; an `Alert.of` when it is new.
        finding: The finding of this evaluation; None when nobody judges this series any more.
        silence: Id of the silence in force for it, or "".
    """
    alert = replace(alert, silence=silence)
    if finding is None:
        alert = _absent(alert, now_ms, settings)
    elif finding.state == "firing":
        alert = _fires(alert, finding, now_ms, settings)
    elif finding.state == "ok":
        alert = _rests(alert, finding, now_ms, settings)
    else:
        alert = _unknown(alert, finding, now_ms)
    fires = finding is not None and finding.state == "firing"
    return _news(alert, fires, now_ms, settings)


def _fires(alert: Alert, finding: Finding, now_ms: int, settings: AlertSettings) -> Alert:
    broken_off = alert.phase == "pending" and now_ms - alert.counted_ms > settings.broken_off_ms
    if alert.phase == "ok" or broken_off:
        same = {name: getattr(alert, name) for name in ("id", "rule", "model", "lane", "source", "silence")}
        alert = Alert(**same, phase="pending", incident=str(now_ms), since_ms=now_ms)
    pending = alert.phase == "pending"
    severity = finding.severity if pending or louder(finding.severity, alert.severity) else alert.severity
    alert = replace(
        alert,
        severity=severity,
        summary=finding.summary,
        latest=finding.summary,
        values=dict(finding.values),
        runbook=finding.runbook or finding.rule,
        beside=finding.beside,
        seen_ms=now_ms,
        rests_since_ms=0,
    )
    if not pending:
        return replace(alert, phase="firing")
    if alert.count == 0 or now_ms - alert.counted_ms >= settings.apart_ms:
        alert = replace(alert, count=alert.count + 1, counted_ms=now_ms)
    sure = alert.count >= finding.evaluations
    return replace(alert, phase="firing", fired_ms=now_ms) if sure else alert


def _rests(alert: Alert, finding: Finding, now_ms: int, settings: AlertSettings) -> Alert:
    unseen_ms = now_ms - alert.seen_ms
    alert = replace(alert, latest=finding.summary, seen_ms=now_ms)
    if alert.phase in ("ok", "pending"):
        return replace(alert, phase="ok", count=0)
    if alert.phase == "firing":
        alert = replace(alert, phase="recovering", rests_since_ms=now_ms)
    elif unseen_ms > settings.broken_off_ms:  # nobody looked: that time proves nothing
        alert = replace(alert, rests_since_ms=alert.rests_since_ms + unseen_ms)
    rested_ms, fired_ms = now_ms - alert.rests_since_ms, now_ms - alert.fired_ms
    if rested_ms >= settings.hold_ms and fired_ms >= settings.firing_min_ms:
        return replace(alert, phase="ok", resolved_ms=now_ms)
    return alert


def _unknown(alert: Alert, finding: Finding, now_ms: int) -> Alert:
    """Keeps the state; a time without data is no time of rest."""
    rests_since_ms = alert.rests_since_ms
    if alert.phase == "recovering":
        rests_since_ms += now_ms - alert.seen_ms
    return replace(alert, latest=finding.summary, seen_ms=now_ms, rests_since_ms=rests_since_ms)


def _absent(alert: Alert, now_ms: int, settings: AlertSettings) -> Alert:
    if alert.phase == "pending":
        return replace(alert, phase="ok", count=0)
    if alert.phase != "ok" and now_ms - alert.seen_ms >= settings.gone_ms:
        return replace(
            alert, phase="ok", resolved_ms=now_ms, latest="no longer judged: no traffic of it is left"
        )
    return alert


def _news(alert: Alert, fires: bool, now_ms: int, settings: AlertSettings) -> tuple[Alert, Kind]:
    """Returns the news of now. Each told alert is resolved, also under a silence: none stays open.

    Only what fires at this evaluation is news; a reminder also comes while there is no data.
    """
    if alert.phase == "ok":
        return (replace(alert, told_ms=0), "resolve") if alert.told_ms else (alert, "")
    if alert.phase != "firing" or alert.beside or alert.silence:
        return alert, ""
    kind: Kind = ""
    if not alert.told_ms:
        kind = "trigger" if fires else ""
    elif fires and louder(alert.severity, alert.told_severity):
        kind = "raised"
    elif now_ms - alert.told_ms >= settings.renotify_ms:
        kind = "reminder"
    return (replace(alert, told_ms=now_ms, told_severity=alert.severity), kind) if kind else (alert, "")


def readable(stored: Iterable[bytes], kind: type[_T]) -> list[_T]:
    """Returns the records of this kind that can be read."""
    return [one for one in (read_record(text, kind) for text in stored) if one is not None]


def read_record(stored: bytes, kind: type[_T]) -> _T | None:
    """Returns a record from its JSON, without fields that a later version added.

    None, and a line in the log, when it is too long or no record of this kind.
    """
    try:
        if len(stored) > _BYTES_MAX:
            raise ValueError(f"a record of {len(stored)} bytes")
        values = json.loads(stored)
        found = {name: values[name] for name in kind.__slots__ if name in values}  # type: ignore[attr-defined]
        if not {type(value) for name, value in found.items() if name.endswith("_ms")} <= {int, float}:
            raise ValueError(f"a time that is no number: {found!r:.80}")
        return kind(**found)
    except _UNREADABLE as error:
        _LOG.error("record_unreadable", detail=f"{type(error).__name__}: {error!s:.200}")
        return None
