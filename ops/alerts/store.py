"""The alerts' state on the server, below `amn:{main}:alerts:`, and its changes by an evaluation.

    states             hash    alert id -> JSON of Alert; those resolved are forgotten after a day
    silences           hash    id -> JSON of Silence; ended ones go with the next one that is made
    outbox             stream  messages that no sender has taken up: `message`; capped
    message:<id>       hash    a message that is being delivered: `body`, `taken_ms`; expires
    line:<sink>|<id>   list    messages for one sink about one alert, in order; expires
    due                zset    lines that have something to deliver, by the time of the next attempt
    tries:<sink>|<id>  hash    of the first message of a line: `attempt`, `error`; expires
    pace               hash    sink -> time before which it is left alone; expires
    waiting            zset    alerts that no primary sink has accepted, by when that is too late
    incident:<id>      hash    `message` that is awaited, `second`: who is told without an acceptance, and
                               `told:<sink>` for each secondary sink that was; expires
    dead               stream  what could not be delivered; capped, expires
    sent               stream  what was accepted, by whom and when; capped, expires
    leader, fence      strings who delivers, as in ops/leader.py; expire
    looked_ms          string  when the sender last looked; expires

An <id> in a key is an alert's id, but for `message:`. Scripts in lua/ write all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

import redis
import structlog

from ops.alerts.alert import Alert, Transition, readable
from ops.alerts.settings import AlertSettings
from ops.alerts.silences import Silence, parse_silences, silence_of, silences_key
from ops.alerts.transitions import step
from ops.findings import Finding
from ops.leader import leader_key
from producer.keys import Keys
from producer.transport.connection import script_text

_LOG = structlog.get_logger("amn.alerts")
#: States and undelivered messages outlive a long absence of judge and sender.
KEPT_S = 90 * 24 * 3600
OUTBOX_MAX = 10_000


def apply(
    client: redis.Redis,
    keys: Keys,
    findings: Sequence[Finding],
    *,
    now_ms: int,
    fence: int | str,
    settings: AlertSettings | None = None,
) -> list[Transition]:
    """Moves every alert of the judge by one evaluation, and puts what is to be told into the outbox.

    Safe to repeat with the same findings: a judge that died before it wrote its own state says the
    same again, and nothing is told twice.

    Args:
        client: Bytes client (`decode_responses=False`).
        keys: Of the queue.
        findings: All of this evaluation; an alert that is missing here is no longer judged.
        now_ms: Of this evaluation, epoch milliseconds by the server's clock.
        fence: Of the judge; when another one leads by now, nothing is written.
        settings: From the environment when None.

    Returns:
        What changed its phase or is to be told; empty when refused.
    """
    settings = settings or AlertSettings.from_environment()
    return apply_as(client, keys, findings, now_ms, Evaluator("judge", leader_key(keys), fence), settings)


class Evaluator:
    """An evaluator: its alerts are its own, and it may write while it leads."""

    __slots__ = ("fence", "leader", "source")

    def __init__(self, source: str, leader: str, fence: int | str) -> None:
        self.source, self.leader, self.fence = source, leader, str(fence)


def apply_as(
    client: redis.Redis,
    keys: Keys,
    findings: Sequence[Finding],
    now_ms: int,
    evaluator: Evaluator,
    settings: AlertSettings,
) -> list[Transition]:
    """Does what `apply` does, for any evaluator."""
    stored, silences = _read(client, keys)
    known = {name: one.as_of(now_ms) for name, one in stored.items() if one.source == evaluator.source}
    after = dict(known)
    changes = []
    environment = f"{settings.environment}/{keys.queue}"
    seen: dict[str, Finding | None] = dict.fromkeys(known)
    for finding in findings:
        alert = Alert.of(finding, environment, evaluator.source)
        if alert.id in known or finding.state == "firing":
            seen[alert.id] = finding
            after.setdefault(alert.id, alert)
    for name, found in seen.items():
        before = after[name]
        silence = silence_of(before, silences, now_ms)
        after[name], kind = step(before, found, now_ms, settings, silence)
        if kind or after[name].phase != before.phase:
            changes.append(Transition(alert=after[name], before=before.phase, kind=kind))
    states = {name: "" if _forgotten(alert, now_ms, settings) else alert for name, alert in after.items()}
    states = {name: alert for name, alert in states.items() if alert != stored.get(name)}
    if states and not _write(client, keys, evaluator, states, changes, now_ms):
        _LOG.warning("alerts_refused", source=evaluator.source, fence=evaluator.fence)
        return []
    _log(changes)
    return changes


def alerts(client: redis.Redis, keys: Keys) -> list[Alert]:
    """Every alert that is not at rest, and those resolved lately; the loudest and oldest first."""
    found, _ = _read(client, keys)
    phases = ("firing", "recovering", "pending", "ok")
    return sorted(
        found.values(),
        key=lambda one: (phases.index(one.phase), one.severity != "page", one.since_ms, one.id),
    )


def alert_of(client: redis.Redis, keys: Keys, alert_id: str) -> Alert | None:
    """Returns the alert as it is now; None when it is at rest."""
    stored = cast("bytes | None", client.hget(states_key(keys), alert_id))
    return next(iter(readable([stored] if stored else [], Alert.from_json)), None)


def _read(client: redis.Redis, keys: Keys) -> tuple[dict[str, Alert], list[Silence]]:
    with client.pipeline(transaction=False) as pipe:
        pipe.hgetall(states_key(keys))
        pipe.hgetall(silences_key(keys))
        states, silences = cast("list[dict[bytes, bytes]]", pipe.execute())
    known = readable(states.values(), Alert.from_json)
    return {alert.id: alert for alert in known}, parse_silences(silences)


def _forgotten(alert: Alert, now_ms: int, settings: AlertSettings) -> bool:
    return alert.phase == "ok" and now_ms - alert.resolved_ms > settings.kept_ms


def _write(
    client: redis.Redis,
    keys: Keys,
    evaluator: Evaluator,
    states: dict[str, Any],
    changes: Iterable[Transition],
    now_ms: int,
) -> bool:
    write = client.register_script(script_text("ops.alerts", "apply"))
    arguments: list[Any] = [evaluator.fence, KEPT_S, OUTBOX_MAX, len(states)]
    for name, alert in states.items():
        arguments += [name, _json(alert.to_json()) if alert else ""]
    told = [one for one in changes if one.kind]
    messages = [{"kind": one.kind, "at_ms": now_ms, "alert": one.alert.to_json()} for one in told]
    arguments += [len(told), *(_json(message) for message in messages)]
    return bool(write(keys=[evaluator.leader, states_key(keys), outbox_key(keys)], args=arguments))


def _log(changes: Iterable[Transition]) -> None:
    for one in changes:
        alert = one.alert
        _LOG.info(
            "alert_changed",
            alert=alert.id,
            rule=alert.rule,
            model=alert.model,
            lane=alert.lane,
            severity=alert.severity,
            before=one.before,
            phase=alert.phase,
            told=one.kind,
            silence=alert.silence,
        )


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def states_key(keys: Keys) -> str:
    """Returns the key of the alerts."""
    return keys.alerts_prefix + "states"


def outbox_key(keys: Keys) -> str:
    """Returns the key of the messages that wait for a sender."""
    return keys.alerts_prefix + "outbox"
