"""The alerts on the server, below `amn:{main}:alerts:`.

    states          hash    alert id -> JSON of Alert; those resolved are forgotten after a day
    silences        hash    id -> JSON of Silence; ended ones go with the next one that is made
    ended           stream  told incidents that ended, until every sink knows: `alert`; capped, expires
    receipts        hash    <sink>|<alert id>|<incident> -> JSON of Receipt; expires
    dead            stream  messages that were given up; capped, expires
    sent            stream  messages that were accepted, by whom and when; capped, expires
    leader, fence   strings who sends, as in ops/leader.py; expire
    looked_ms       string  when the sender last looked; expires

Evaluators write states and ended incidents, the sender all else, each under its fence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import cast

import redis
import structlog

from ops.alerts.alert import Alert, Kind, Phase, readable, step
from ops.alerts.settings import AlertSettings
from ops.alerts.silences import silence_of, silences
from ops.findings import Finding
from ops.leader import Command, leader_key, write
from producer.keys import Keys

_LOG = structlog.get_logger("amn.alerts")
#: States and incidents that nobody was told of outlive a long absence of judge and sender.
KEPT_S = 90 * 24 * 3600
ENDED_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """The changes that one evaluation made.

    Attributes:
        alert: The alert now.    before: The phase that it was in.
        kind: The news that is to be told, or "".
    """

    alert: Alert
    before: Phase
    kind: Kind


def apply(
    client: redis.Redis,
    keys: Keys,
    findings: Sequence[Finding],
    *,
    now_ms: int,
    fence: int | str,
    settings: AlertSettings | None = None,
    source: str = "judge",
) -> list[Transition]:
    """Moves every alert of the judge, or of the sender, by one evaluation.

    Safe to repeat with the same findings: a judge that died before it wrote its own state says the
    same again, and nothing is told twice.

    Args:
        findings: All of this evaluation; an alert that is missing here is no longer judged.
        now_ms: Time of this evaluation, epoch milliseconds by the server's clock.
        fence: The evaluator's; when another one leads by now, nothing is written.
        settings: From the environment when None.
        source: Who evaluates, "judge" or "sender"; each has alerts of its own.

    Returns:
        The alerts that changed their phase or are to be told; empty when refused.
    """
    settings = settings or AlertSettings.from_environment()
    stored, held = states(client, keys), silences(client, keys, now_ms)
    known = {name: one.as_of(now_ms) for name, one in stored.items() if one.source == source}
    found: dict[str, Finding | None] = dict.fromkeys(known)
    for finding in findings:
        alert = Alert.of(finding, f"{settings.environment}/{keys.queue}", source)
        if alert.id in known or finding.state == "firing":
            found[alert.id] = finding
            known.setdefault(alert.id, alert)
    key = keys.alerts_prefix + "states"
    changes, ended, commands = list[Transition](), list[Alert](), list[Command]()
    for name, one in found.items():
        before = known[name]
        alert, kind = step(before, one, now_ms, settings, silence_of(before, held, now_ms))
        if kind or alert.phase != before.phase:
            changes.append(Transition(alert=alert, before=before.phase, kind=kind))
        if kind == "resolve":
            ended.append(replace(alert, told_ms=before.told_ms))
        if alert.phase == "ok" and now_ms - alert.resolved_ms > settings.kept_ms:
            commands += [("HDEL", key, name)] if name in stored else []
        elif alert != stored.get(name):
            commands.append(("HSET", key, name, json.dumps(asdict(alert))))
    # An end is kept before its alert forgets that it was told.
    commands = [*add_ended(keys, ended), *commands]
    leader = leader_key(keys) if source == "judge" else keys.alerts_prefix + "leader"
    if commands and not write(client, leader, fence, [*commands, ("EXPIRE", key, KEPT_S)]):
        _LOG.warning("alerts_refused", source=source, fence=fence)
        return []
    _log(changes)
    return changes


def add_ended(keys: Keys, ended: Iterable[Alert]) -> list[Command]:
    """Returns the commands that keep these incidents until every sink knows of their end."""
    key = keys.alerts_prefix + "ended"
    adds: list[Command] = [
        ("XADD", key, "MAXLEN", ENDED_MAX, "*", "alert", json.dumps(asdict(one))) for one in ended
    ]
    return [*adds, ("EXPIRE", key, KEPT_S)] if adds else []


def states(client: redis.Redis, keys: Keys) -> dict[str, Alert]:
    """Returns the alerts by id."""
    stored = cast("dict[bytes, bytes]", client.hgetall(keys.alerts_prefix + "states"))
    return {alert.id: alert for alert in readable(stored.values(), Alert)}


def alerts(client: redis.Redis, keys: Keys) -> list[Alert]:
    """Returns the alerts that are not at rest or were resolved lately, the loudest and oldest first."""
    phases = ("firing", "recovering", "pending", "ok")
    return sorted(
        states(client, keys).values(),
        key=lambda one: (phases.index(one.phase), one.severity != "page", one.since_ms, one.id),
    )


def _log(changes: Iterable[Transition]) -> None:
    for one in changes:
        names = ("rule", "model", "lane", "severity", "phase", "silence")
        said = {name: getattr(one.alert, name) for name in names}
        _LOG.info("alert_changed", alert=one.alert.id, before=one.before, told=one.kind, **said)
