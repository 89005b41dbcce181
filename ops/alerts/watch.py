"""The sender's own watch: the judge's heartbeat, and its own deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import redis

from ops.alerts.outbox import Outbox, Undelivered
from ops.alerts.settings import AlertSettings
from ops.clock import span
from ops.drift.memory import Memory
from ops.findings import Finding
from producer.keys import Keys

#: A message that was given up is an alert for this long.
_DEAD_FOR_MS = 6 * 3_600_000
RULES = ("judge_dead", "delivery_failed")


def watch(
    client: redis.Redis, keys: Keys, outbox: Outbox, now_ms: int, settings: AlertSettings, trouble: str = ""
) -> list[Finding]:
    """The findings of now; `trouble` is what keeps the sinks from being read anew."""
    heard_ms = Memory(client, keys).evaluated_at_ms()
    return [
        judge_dead(heard_ms, now_ms, settings),
        delivery_failed(counted(outbox.undelivered()), given_up(outbox, now_ms), now_ms, settings, trouble),
    ]


def counted(undelivered: Sequence[Undelivered]) -> list[Undelivered]:
    """Without messages about failed deliveries: the sink that is broken cannot take those either."""
    return [one for one in undelivered if one.rule != "delivery_failed"]


def given_up(outbox: Outbox, now_ms: int) -> list[dict[str, str]]:
    """Returns the messages given up lately, without those about messages given up."""
    dead = outbox.log("dead", now_ms - _DEAD_FOR_MS)
    return [one for one in dead if one["rule"] != "delivery_failed"]


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
    undelivered: Sequence[Undelivered],
    gone: Sequence[dict[str, str]],
    now_ms: int,
    settings: AlertSettings,
    trouble: str = "",
) -> Finding:
    """`delivery_failed`: a sink does not take its messages, or the sinks cannot be read any more.

    Arguments as `counted`, `given_up` and `Sinks.trouble`.
    """
    late = [one for one in undelivered if now_ms - one.taken_ms > settings.late_ms]
    if trouble:
        text = f"the sinks cannot be read any more, and those of before are used: {trouble}"
        return _finding("delivery_failed", "firing", text, late=len(late), dead=len(gone))
    if not late and not gone:
        return _finding("delivery_failed", "ok", "every message was accepted, or is on its way")
    sinks = sorted({one.sink for one in late} | {one["sink"] for one in gone})
    errors = [one.error for one in late] + [one["detail"] for one in gone]
    text = f"{len(late)} messages are late and {len(gone)} were given up; sinks: {', '.join(sinks)}"
    text += f"; last error: {errors[-1]}" if errors[-1] else ""
    return _finding("delivery_failed", "firing", text, late=len(late), dead=len(gone))


def _finding(rule: str, state: str, summary: str, **values: int) -> Finding:
    return Finding(
        rule=rule,
        severity="ticket",
        state=state,  # type: ignore[arg-type]
        summary=summary,
        values=values,
        runbook=rule,
        evaluations=1,
    )
