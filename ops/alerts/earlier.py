"""The messages that a sender of version 0.1 left: they become incidents and receipts.

It had an `outbox` (stream) of messages that nobody had taken up, lists `line:<sink>|<alert id>` of the ids of
those under way with their sinks and alerts in `due`, and their bodies in `message:<id>`. A told alert that
is in none of these is known to every sink that wants it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import redis

from ops.alerts.alert import UNREADABLE, Alert, Kind, record
from ops.alerts.books import put, read
from ops.alerts.config import AlertsConfig
from ops.alerts.receipts import Receipt
from ops.alerts.sinks.base import Sink
from ops.alerts.store import add_ended
from ops.leader import Command
from producer.keys import Keys


def take_over(client: redis.Redis, keys: Keys, config: AlertsConfig) -> list[Command]:
    """Returns the commands that bring over what an earlier sender left; none when there is nothing."""
    prefix = keys.alerts_prefix
    old = [prefix + name for name in ("outbox", "due", "waiting", "pace")]
    if not client.exists(*old):
        return []
    waiting: defaultdict[tuple[str, str, int], set[Kind]] = defaultdict(set)
    ended: dict[tuple[str, int], Alert] = {}
    for name, alert, kind in _messages(client, prefix, config):
        waiting[name, alert.id, alert.since_ms].add(kind)
        if kind == "resolve":
            ended[alert.id, alert.since_ms] = replace(alert, incident=str(alert.since_ms))
    begun = [one for one in read(client, keys).incidents if not one.incident]
    commands = add_ended(keys, ended.values())
    for alert in [*ended.values(), *begun]:
        for sink in config.sinks.values():
            kinds = waiting[sink.name, alert.id, alert.since_ms]
            knows = alert.phase == "ok" or bool(kinds) or _heard(client, prefix, sink, alert)
            if knows and "trigger" not in kinds:
                _, key, *words = put(keys, f"{sink.name}|{alert.name}", _receipt(alert, kinds))
                commands.append(("HSETNX", key, *words))
    return [*commands, *(("DEL", key) for key in old)]


def _messages(client: Any, prefix: str, config: AlertsConfig) -> Iterator[tuple[str, Alert, Kind]]:
    """Yields sink, alert and kind of every message that was not delivered."""
    found: list[tuple[str, bytes]] = []
    for line in client.zrange(prefix + "due", 0, -1):
        sink = line.decode().partition("|")[0]
        names = client.lrange(f"{prefix}line:{line.decode()}", 0, -1)
        found += [(sink, client.hget(f"{prefix}message:{name.decode()}", "body") or b"") for name in names]
    found += [("", fields.get(b"message", b"")) for _, fields in client.xrange(prefix + "outbox")]
    for sink, body in found:
        with suppress(*UNREADABLE):
            message = json.loads(body)
            alert = record(message["alert"], Alert)
            heard = [one.name for one in config.sinks.values() if _heard(client, prefix, one, alert)]
            yield from ((name, alert, message["kind"]) for name in ([sink] if sink else heard))


def _heard(client: redis.Redis, prefix: str, sink: Sink, alert: Alert) -> bool:
    """True if the messages about this alert went to this sink, too."""
    if sink.secondary:
        return bool(client.hexists(f"{prefix}incident:{alert.id}", f"told:{sink.name}"))
    return sink.wants("trigger", alert.severity)


def _receipt(alert: Alert, waiting: set[Kind]) -> Receipt:
    return Receipt(
        severity="ticket" if "raised" in waiting else alert.told_severity or alert.severity,
        told_ms=0 if "reminder" in waiting else alert.told_ms,
        ended=alert.phase == "ok" and "resolve" not in waiting,
    )
