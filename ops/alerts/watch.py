"""The sender's own findings: the judge's heartbeat, and its own deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ops.alerts.settings import AlertSettings
from ops.clock import span
from ops.findings import Finding, State, service_finding

RULES = ("judge_dead", "delivery_failed")
#: A message that was given up is an alert for this long.
GIVEN_UP_FOR_MS = 6 * 3_600_000


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
