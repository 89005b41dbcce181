"""The sender's books on the server: incidents, receipts, and the log of deliveries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import redis

from ops.alerts.alert import Alert, read_record, readable
from ops.alerts.receipts import Owed, Receipt
from ops.leader import Command
from producer.keys import Keys

_LOG_KEPT_S = 8 * 24 * 3600
_LOG_MAX = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """All that is to be compared.

    Attributes:
        ended: Incidents that ended, by their entries; None for one that cannot be read.
        open: Told incidents that go on.    receipts: Receipts by their names.
    """

    ended: dict[str, Alert | None]
    open: list[Alert]
    receipts: dict[str, Receipt]

    @property
    def incidents(self) -> list[Alert]:
        """Told incidents in their order. The severity of each is the one that is to be known outside."""
        found = [*(one for one in self.ended.values() if one), *self.open]
        return [replace(one, severity=one.told_severity or one.severity) for one in found]  # type: ignore[arg-type]

    def untaken(self) -> int:
        """Returns the number of incidents that no sender has taken up."""
        taken = {name.partition("|")[2] for name in self.receipts}
        return sum(one.name not in taken for one in self.incidents)

    def undelivered(self) -> list[dict[str, Any]]:
        """Returns the messages that are under way, the next one first: sink, alert, rule, and the receipt."""
        known = {one.name: {"alert": one.id, "rule": one.rule} for one in self.incidents}
        found = [
            {"sink": name.partition("|")[0], **known[incident], **asdict(one)}
            for name, one in self.receipts.items()
            if one.owed and (incident := name.partition("|")[2]) in known
        ]
        return sorted(found, key=lambda one: (one["next_ms"], one["owed_ms"], one["sink"]))

    def changes(self, keys: Keys, compared: Sequence[Owed], now_ms: int) -> list[Command]:
        """Returns the commands that note what is owed, and forget incidents that every sink knows."""
        after = {one.name: one.receipt for one in compared}
        changed = {name: one for name, one in after.items() if one != self.receipts.get(name)}
        commands = [put(keys, name, one) for name, one in changed.items()]
        commands += [
            ("HDEL", keys.alerts_prefix + "receipts", name) for name in self.receipts if name not in after
        ]
        told = {one.alert.name for one in compared if not one.closed(now_ms)}
        for entry, alert in self.ended.items():
            if alert is None:
                commands += log_entry(keys, "dead", {"rule": "unreadable", "detail": entry, "at_ms": now_ms})
            if alert is None or alert.name not in told:
                commands.append(("XDEL", keys.alerts_prefix + "ended", entry))
        return commands


def read(client: redis.Redis, keys: Keys) -> Books:
    """Reads all of it at one moment: an incident that ends meanwhile is open or ended."""
    with client.pipeline(transaction=True) as pipe:
        pipe.hgetall(keys.alerts_prefix + "states")
        pipe.xrange(keys.alerts_prefix + "ended")
        pipe.hgetall(keys.alerts_prefix + "receipts")
        states, entries, receipts = pipe.execute()
    return Books(
        ended={entry.decode(): read_record(fields.get(b"alert", b""), Alert) for entry, fields in entries},
        open=[one for one in readable(states.values(), Alert) if one.phase != "ok" and one.told_ms],
        receipts={
            name.decode("utf-8", "replace"): read_record(text, Receipt) or Receipt()
            for name, text in receipts.items()
        },
    )


def put(keys: Keys, name: str, receipt: Receipt) -> Command:
    """Returns the command that stores a receipt; one that lets the receipts live on has to follow."""
    return ("HSET", keys.alerts_prefix + "receipts", name, json.dumps(asdict(receipt)))


def log_entry(keys: Keys, name: str, said: dict[str, str | int]) -> list[Command]:
    """Returns the commands that add an entry to "sent" or "dead"."""
    key = keys.alerts_prefix + name
    names = ("sink", "message", "alert", "rule", "kind", "attempt", "detail", "at_ms")
    words = [word for field in names for word in (field, said.get(field, ""))]
    return [("XADD", key, "MAXLEN", _LOG_MAX, "*", *words), ("EXPIRE", key, _LOG_KEPT_S)]


def log(client: redis.Redis, keys: Keys, name: str, since_ms: int = 0) -> list[dict[str, str]]:
    """Returns the entries of "sent" or "dead" since then, newest first."""
    entries = client.xrevrange(keys.alerts_prefix + name, count=_LOG_MAX)
    found = [
        {field.decode(): value.decode("utf-8", "replace") for field, value in fields.items()}
        for _, fields in cast("list[tuple[bytes, dict[bytes, bytes]]]", entries)
    ]
    return [fields for fields in found if int(fields["at_ms"]) >= since_ms]
