"""Alerts for a person and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

import redis

from amn.output import plain
from ops.alerts.alert import Alert
from ops.alerts.outbox import Outbox
from ops.alerts.sender import looked_key
from ops.alerts.settings import AlertSettings
from ops.alerts.silences import silences
from ops.alerts.store import alerts
from ops.alerts.wording import clock
from ops.clock import span
from ops.console import DataTable, Screen, styled
from producer.keys import Keys

_STYLES = {"page": "bold red", "ticket": "yellow"}
#: A sender that looks once a minute, and missed one.
_SENDER_SILENT_MS = 150_000
_DAY_MS = 24 * 3_600_000


def listing(client: redis.Redis, keys: Keys, now_ms: int) -> dict[str, Any]:
    """Collects all that `amn alerts list` says."""
    outbox = Outbox(client, keys)
    looked_ms = int(cast("bytes | None", client.get(looked_key(keys))) or 0)
    return {
        "now_ms": now_ms,
        "alerts": [one.to_json() for one in alerts(client, keys)],
        "silences": [asdict(one) for one in silences(client, keys, now_ms)],
        "sender_looked_ms": looked_ms,
        "sender_runs": 0 <= now_ms - looked_ms < _SENDER_SILENT_MS,
        "outbox": outbox.waits(),
        "undelivered": [asdict(one) for one in outbox.undelivered()],
        "dead": outbox.log("dead", now_ms - _DAY_MS),
    }


def show_listing(out: Screen, found: dict[str, Any]) -> None:
    """Shows the alerts as tables."""
    now_ms = found["now_ms"]
    if found["alerts"]:
        out.print(_alerts_table(found["alerts"], now_ms))
    else:
        out.print("nothing fires, and nothing did in the last day")
    if found["silences"]:
        out.print()
        out.print(_silences_table(found["silences"], now_ms))
    out.print()
    out.print(_delivery_line(found))
    for one in found["undelivered"]:
        sink, _, alert = one["line"].partition("|")
        out.print(
            f"  {sink}: {one['rule']} ({alert[:8]}) tried {one['attempts']} times, "
            f"next in {span(one['due_ms'] - now_ms)}; {plain(one['error'])}"
        )
    for one in found["dead"]:
        out.print(f"  {one['sink']} never took {one['rule']} ({one['alert'][:8]}): {plain(one['detail'])}")


def detail(
    client: redis.Redis, keys: Keys, alert: Alert, settings: AlertSettings, now_ms: int
) -> dict[str, Any]:
    """Collects all that `amn alerts show` says."""
    outbox = Outbox(client, keys)
    return {
        "now_ms": now_ms,
        "alert": alert.to_json(),
        "runbook": settings.runbook(alert.runbook),
        "undelivered": [asdict(one) for one in outbox.undelivered() if one.line.endswith(alert.id)],
        "sent": [one for one in outbox.log("sent") if one["alert"] == alert.id],
        "dead": [one for one in outbox.log("dead") if one["alert"] == alert.id],
    }


def show_detail(out: Screen, found: dict[str, Any]) -> None:
    """Shows one alert as lines."""
    alert, now_ms = found["alert"], found["now_ms"]
    rows = {
        "alert": alert["id"],
        "rule": f"{alert['rule']} ({alert['severity']})",
        "model": alert["model"] or "all",
        "lane": alert["lane"] or "all",
        "state": _state(alert, now_ms),
        "since": f"{clock(alert['since_ms'])}, {span(now_ms - alert['since_ms'])} ago",
        "said": alert["summary"],
        "says now": alert["latest"],
        "runbook": found["runbook"],
    }
    if alert["told_ms"]:
        rows["told"] = f"{clock(alert['told_ms'])}, as a {alert['told_severity']}"
    table = DataTable(show_header=False)
    for name, value in rows.items():
        table.add_row(styled(name, "dim"), value)
    for name, value in alert["values"].items():
        table.add_row(styled(f"  {name}", "dim"), value)
    for one in found["sent"]:
        table.add_row(styled("sent", "dim"), f"{clock(int(one['at_ms']))} {one['kind']} to {one['sink']}")
    for one in found["undelivered"]:
        table.add_row(styled("not sent yet", "dim"), f"{one['line'].partition('|')[0]}: {one['error']}")
    for one in found["dead"]:
        table.add_row(styled("given up", "dim"), f"{clock(int(one['at_ms']))} {one['sink']}: {one['detail']}")
    out.print(table)


def _alerts_table(rows: list[dict[str, Any]], now_ms: int) -> DataTable:
    table = DataTable()
    for column in ("id", "severity", "rule", "model", "lane", "state", "what"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row["id"][:8],
            styled(row["severity"], _STYLES[row["severity"]]),
            row["rule"],
            row["model"] or "all",
            row["lane"] or "all",
            _state(row, now_ms),
            row["latest"] if row["phase"] == "ok" else row["summary"],
        )
    return table


def _state(row: dict[str, Any], now_ms: int) -> str:
    phase = row["phase"]
    if phase == "ok":
        return f"resolved {span(now_ms - row['resolved_ms'])} ago"
    if phase == "pending":
        return f"pending, {row['count']} in a row"
    held = f", silenced by {row['silence']}" if row["silence"] else ""
    held += f", beside {row['beside']}" if row["beside"] else ""
    return f"{phase} for {span(now_ms - row['fired_ms'])}{held}"


def _silences_table(rows: list[dict[str, Any]], now_ms: int) -> DataTable:
    table = DataTable()
    for column in ("silence", "of", "ends in", "by", "because"):
        table.add_column(column)
    for row in rows:
        names = ("rule", "model", "lane")
        of = row["alert"][:8] or " ".join(f"{name}={row[name]}" for name in names if row[name])
        table.add_row(row["id"], of, span(row["until_ms"] - now_ms), row["author"], row["reason"])
    return table


def _delivery_line(found: dict[str, Any]) -> str:
    looked_ms = found["sender_looked_ms"]
    if found["sender_runs"]:
        who = "a sender runs"
    elif looked_ms:
        who = f"NO SENDER for {span(found['now_ms'] - looked_ms)}; start one with `amn alerts run`"
    else:
        who = "no sender has run here; nobody is told (docs/alerts.md)"
    counts = f"{found['outbox']} wait, {len(found['undelivered'])} on their way"
    return f"delivery: {who}; {counts}, {len(found['dead'])} given up in a day"
