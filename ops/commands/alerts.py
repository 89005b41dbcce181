"""`amn alerts`: what fires, what is silenced, what was sent; and the process that sends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import redis

from amn.output import plain
from ops import console
from ops.alerts import Alert, AlertSettings, store
from ops.alerts.silences import SILENCE_MS_MAX, SILENCES_MAX, Silence, add_silence, end_silence, silences
from ops.clock import parse_span, server_now_ms, span
from ops.commands import options
from ops.errors import AlertRefused, SinksRefused
from ops.health.beside import SILENT_MS
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.connection import connect, driver_errors
from workers.pool.child import follow_parent
from workers.pulse import Pulse

_STYLES = {"page": "bold red", "ticket": "yellow"}
_DAY_MS = 24 * 3_600_000

config = click.option(
    "--config", type=options.FILE, help="TOML file of the sinks (docs/alerts.md). [env: AMN_ALERTS_FILE]"
)


@click.group(short_help="What fires, silences, and where it is sent.")
def alerts() -> None:
    """See what fires, hold it back for a while, and try out where it is sent.

    \b
    Examples:
      amn alerts list
      amn alerts silence --rule level --for 2h --reason "new encoder, see #12"
      amn alerts test pager --config alerts.toml
    """


@contextmanager
def _opened(settings: ProducerSettings) -> Iterator[tuple[redis.Redis, Keys, int]]:
    """Yields a client, its queue's keys, and the server's time."""
    with options.client(settings) as client:
        yield client, Keys(settings.queue), server_now_ms(client)


def _named(client: redis.Redis, keys: Keys, name: str) -> Alert:
    """Returns the alert of this id, which may be shortened while it names one alert alone."""
    found = [one for one in store.alerts(client, keys) if one.id.startswith(name)]
    if len(found) != 1:
        said = "no alert begins" if not found else f"{len(found)} alerts begin"
        raise AlertRefused(f"{said} with {name!r}; `amn alerts list` shows them")
    return found[0]


@alerts.command("list")
@options.as_json
@options.server
def list_alerts(as_json: bool, settings: ProducerSettings) -> None:
    """Lists firing, recovering and lately resolved alerts, silences, and the delivery."""
    from ops.alerts import books  # loads an HTTP client, which `amn --help` is not to wait for

    with _opened(settings) as (client, keys, now_ms):
        now = books.read(client, keys)
        looked_ms = int(client.get(keys.alerts_prefix + "looked_ms") or 0)
        found = {
            "now_ms": now_ms,
            "alerts": [asdict(one) for one in store.alerts(client, keys)],
            "silences": [asdict(one) for one in silences(client, keys, now_ms)],
            "sender_looked_ms": looked_ms,
            "sender_runs": 0 <= now_ms - looked_ms <= SILENT_MS,
            "outbox": now.untaken(),
            "undelivered": now.undelivered(),
            "dead": books.log(client, keys, "dead", now_ms - _DAY_MS),
        }
    console.answer(as_json, found, _show_listing, indent=2)


def _show_listing(found: dict[str, Any]) -> None:
    out, now_ms = console.out(), found["now_ms"]
    table = console.DataTable("id", "severity", "rule", "model", "lane", "state", "what")
    for row in found["alerts"]:
        severity = console.styled(row["severity"], _STYLES[row["severity"]])
        said = row["latest"] if row["phase"] == "ok" else row["summary"]
        where = (row["model"] or "all", row["lane"] or "all")
        table.add_row(row["id"][:8], severity, row["rule"], *where, _state(row, now_ms), said)
    out.print(table if found["alerts"] else "nothing fires, and nothing did in the last day")
    table = console.DataTable("silence", "of", "ends in", "by", "because")
    for row in found["silences"]:
        names = " ".join(f"{name}={row[name]}" for name in ("rule", "model", "lane") if row[name])
        left = span(row["until_ms"] - now_ms)
        table.add_row(row["id"], row["alert"][:8] or names, left, row["author"], row["reason"])
    out.print(*(["", table] if found["silences"] else []), "", sep="\n")
    silent = span(now_ms - found["sender_looked_ms"])
    who = f"NO SENDER for {silent}; start one with `amn alerts run`"
    if not found["sender_looked_ms"]:
        who = "no sender has run here; nobody is told (docs/alerts.md)"
    who = "a sender runs" if found["sender_runs"] else who
    counts = f"{found['outbox']} wait, {len(found['undelivered'])} on their way"
    out.print(f"delivery: {who}; {counts}, {len(found['dead'])} given up in a day")
    _show_undelivered(out, found)


def _show_undelivered(out: console.Screen, found: dict[str, Any]) -> None:
    for one in found["undelivered"]:
        tried = f"tried {one['attempts']} times, next in {span(one['next_ms'] - found['now_ms'])}"
        out.print(f"  {one['sink']}: {one['rule']} ({one['alert'][:8]}) {tried}; {plain(one['error'])}")
    for one in found["dead"]:
        out.print(f"  {one['sink']} never took {one['rule']} ({one['alert'][:8]}): {plain(one['detail'])}")


def _state(row: dict[str, Any], now_ms: int) -> str:
    phase = row["phase"]
    if phase == "ok":
        return f"resolved {span(now_ms - row['resolved_ms'])} ago"
    if phase == "pending":
        return f"pending, {row['count']} in a row"
    held = f", silenced by {row['silence']}" if row["silence"] else ""
    held += f", beside {row['beside']}" if row["beside"] else ""
    return f"{phase} for {span(now_ms - row['fired_ms'])}{held}"


@alerts.command()
@click.argument("alert_id", metavar="ID")
@options.as_json
@options.server
def show(alert_id: str, as_json: bool, settings: ProducerSettings) -> None:
    """One alert with its numbers, its runbook and what was sent. ID may be shortened."""
    from ops.alerts import books

    with _opened(settings) as (client, keys, now_ms):
        alert = _named(client, keys, alert_id)
        waits = books.read(client, keys).undelivered()
        logs = {name: books.log(client, keys, name) for name in ("sent", "dead")}
        found = {
            "now_ms": now_ms,
            "alert": asdict(alert),
            "runbook": AlertSettings.from_environment().runbook(alert.runbook),
            "undelivered": [one for one in waits if one["alert"] == alert.id],
            **{name: [one for one in log if one["alert"] == alert.id] for name, log in logs.items()},
        }
    console.answer(as_json, found, _show_alert, indent=2)


def _show_alert(found: dict[str, Any]) -> None:
    from ops.alerts.sinks.base import clock

    out, alert, now_ms = console.out(), found["alert"], found["now_ms"]
    told = f"{clock(alert['told_ms'])}, as a {alert['told_severity']}"
    rows = [
        ("alert", alert["id"]),
        ("rule", f"{alert['rule']} ({alert['severity']})"),
        ("model", alert["model"] or "all"),
        ("lane", alert["lane"] or "all"),
        ("state", _state(alert, now_ms)),
        ("since", f"{clock(alert['since_ms'])}, {span(now_ms - alert['since_ms'])} ago"),
        ("said", alert["summary"]),
        ("says now", alert["latest"]),
        ("runbook", found["runbook"]),
        *([("told", told)] if alert["told_ms"] else []),
        *((f"  {name}", value) for name, value in alert["values"].items()),
        *(("sent", f"{clock(int(one['at_ms']))} {one['kind']} to {one['sink']}") for one in found["sent"]),
    ]
    dimmed = ((console.styled(name, "dim"), value) for name, value in rows)
    out.print(console.DataTable(show_header=False).filled(dimmed))
    _show_undelivered(out, found)


def _length_ms(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    try:
        length_ms = parse_span(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if length_ms > SILENCE_MS_MAX:
        raise click.BadParameter(f"{value} is longer than {span(SILENCE_MS_MAX)}.")
    return length_ms


@alerts.command()
@click.argument("alert_id", metavar="[ID]", default="")
@click.option("--rule", default="", help="Every alert of this rule.")
@click.option("--model", default="", help="Of this model only.")
@click.option("--lane", default="", help="Of this lane only.")
@click.option(
    "--for", "length_ms", metavar="TIME", required=True, callback=_length_ms, help="90s, 30m, 2h or 3d."
)
@click.option("--reason", required=True, help="Why nobody needs to hear of it.")
@click.option("--author", default=options.login_name, show_default="login name", help="Who decides.")
@options.server
def silence(alert_id: str, length_ms: int, settings: ProducerSettings, **values: str) -> None:
    """Hold back one alert, or those of a rule, model or lane; prints the id of the silence.

    They are judged and listed all the same. What was told already is still resolved; what goes on
    when the silence ends is told then.
    """
    from ops.alerts.watch import RULES
    from ops.drift.memory import Memory

    if bool(alert_id) == any(values[name] for name in ("rule", "model", "lane")):
        raise click.UsageError("Give the ID of one alert, or some of --rule, --model and --lane.")
    if not values["reason"].strip():
        raise click.BadParameter("it is empty.", param_hint="'--reason'")
    with _opened(settings) as (client, keys, now_ms):
        known = sorted({*RULES, *(one.rule for one in Memory(client, keys).findings())})
        if values["rule"] and values["rule"] not in known:
            said = f"note: no rule {values['rule']!r} was judged here yet; known: {', '.join(known)}"
            console.say(said, err=True)
        alert = _named(client, keys, alert_id).id if alert_id else ""
        made = Silence(until_ms=now_ms + length_ms, made_ms=now_ms, alert=alert, **values)
        if not add_silence(client, keys, made):
            raise AlertRefused(f"{SILENCES_MAX} silences are in force; end some with `amn alerts unsilence`")
    console.say(made.id)


@alerts.command()
@click.argument("silence_id", metavar="SILENCE")
@options.server
def unsilence(silence_id: str, settings: ProducerSettings) -> None:
    """End a silence now; its id is in `amn alerts list`."""
    with _opened(settings) as (client, keys, _):
        if not end_silence(client, keys, silence_id):
            raise AlertRefused(f"no silence is called {silence_id!r}; `amn alerts list` shows them")


@alerts.command()
@click.argument("sink")
@config
@options.queue
@options.as_json
def test(sink: str, config: Path | None, queue: str | None, as_json: bool) -> None:
    """Send SINK a test alert, and its end; no server is needed. Exit code 1 when it does not accept."""
    from ops.alerts.config import load
    from ops.alerts.sender import send_trial

    loaded = load(config)
    if sink not in loaded.sinks:
        known = ", ".join(sorted(loaded.sinks)) or "none; see docs/alerts.md"
        raise SinksRefused(f"no sink is called {sink!r}; configured: {known}")
    answers = send_trial(loaded, loaded.sinks[sink], queue or "main")
    if as_json:
        console.say_json({kind: asdict(answer) for kind, answer in answers.items()})
    else:
        for kind, answer in answers.items():
            console.say(f"{kind}: {answer.outcome} {answer.detail}".strip())
    if any(answer.outcome != "accepted" for answer in answers.values()):
        raise AlertRefused(f"{sink} did not accept the test")


@alerts.command()
@config
@options.log_level
@options.server
def run(config: Path | None, log_level: str, settings: ProducerSettings) -> None:
    """Send alerts until Ctrl-C or SIGTERM. Of several of these one sends; the others stand by."""
    from ops.alerts.config import Sinks, load, load_usable
    from ops.alerts.sender import Sender
    from workers.logs import configure_logs
    from workers.pool.failures import last_words

    stopping = threading.Event()
    configure_logs(log_level)
    follow_parent()
    with last_words(settings, "sender"), driver_errors(settings.url):
        pulse = Pulse()
        pulse.ready()
        load_usable(config)
        sender = Sender(connect(settings), Keys(settings.queue), Sinks(lambda: load(config)))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
        sender.run(stopping, settings.url, pulse)
