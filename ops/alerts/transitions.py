"""The state machine of an alert. Pure: no clock, no server.

         a             b                c
    ok -----> pending -----> firing <-----> recovering
     ^           |                             |
     +-----------+-----------------------------+  d

a. The rule fires for the first time. b. It fired so many evaluations in a row as it asks for.
c. It rests, or fires again: one incident. d. A pending one rests at once; a recovering one after it
has rested for `hold_ms`, and not before `firing_min_ms`. Too little data moves nothing.
"""

from __future__ import annotations

from dataclasses import replace

from ops.alerts.alert import Alert, Kind, louder
from ops.alerts.settings import AlertSettings
from ops.findings import Finding


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
