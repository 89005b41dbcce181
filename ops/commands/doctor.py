"""`amn doctor`: is it well?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from ops import console
from ops.commands import options
from ops.health import FAILURE, OK, WARNING, CheckResult, Facts, Report, alive, beside, check, gather
from ops.health import keys as health_keys
from ops.health.backlog import backlogs
from ops.settings import producer_settings, service, with_origin
from ops.stages import STATISTICS
from producer.errors import ServerError
from producer.keys import Keys
from producer.settings import ProducerSettings

_STYLES = {OK: "green", WARNING: "yellow", FAILURE: "bold red"}


@click.command(short_help="Is the service well?")
@click.option(
    "--alive",
    "asked",
    type=click.Choice(["amn", "fallback", "shadow", "judge", "sender", "jobs"]),
    help="Only ask whether a worker of this kind on this host is alive, or one of the others anywhere.",
)
@click.option("--strict", is_flag=True, help="Warnings fail too.")
@click.option("--repair", "mend", is_flag=True, help="First mend the keys that cannot be right.")
@click.option("--forget-sender", is_flag=True, help="First note that the sender of alerts was removed.")
@click.option(
    "--watch", "watch_s", type=click.FloatRange(0.5), metavar="SECONDS", help="Look again and again."
)
@options.artifacts
@options.url
@options.queue
@options.as_json
def doctor(
    asked: str | None,
    strict: bool,
    watch_s: float | None,
    artifacts: Path | None,
    url: str | None,
    queue: str | None,
    as_json: bool,
    **first: bool,
) -> None:
    """Look at server, queue, workers, dead letters, counters and the shadow's OOD delta.

    Exit code 1 when a check fails or the server cannot be asked; warnings alone leave it 0, unless
    --strict. A worker is well when it ends what it holds: a process that merely lives is not enough.

    Changes nothing, unless with --repair: then streams whose ids are used up or far ahead of the
    clock, keys of another type and wrong counters are mended first. What waits is kept, in order;
    what is leased at that moment runs again, and is answered once. With --forget-sender, a sender of
    alerts that was removed on purpose is missed no more, until one runs again.

    \b
    Examples:
      amn doctor
      amn doctor --json | jq .findings
      amn doctor --watch 2
      amn doctor --repair
      amn doctor --alive amn
    """
    settings, found = producer_settings(url, queue), service(url)
    if asked is not None:
        _say_alive(settings, asked, as_json)
        return
    repaired = _changed(settings, **first)
    root = artifacts or (Path(found.artifacts) if found.artifacts else None)
    for report in _looks(settings, root, found.found, watch_s):
        _show(replace(report, repaired=repaired), as_json, clear=watch_s is not None and not as_json)
    report.raise_failed(strict=strict)


def _say_alive(settings: ProducerSettings, asked: str, as_json: bool) -> None:
    with options.client(settings) as client:
        name = alive(client, Keys(settings.queue), asked)
    console.say_json({"alive": name}) if as_json else console.say(f"{name} is alive")


def _changed(settings: ProducerSettings, *, mend: bool, forget_sender: bool) -> list[str]:
    """Does what was asked for before the look; a sentence for each thing that was done."""
    done: list[str] = []
    if mend or forget_sender:
        with options.client(settings) as client:
            done += health_keys.repair(client, settings) if mend else []
            done += [beside.forget_sender(client, Keys(settings.queue))] if forget_sender else []
    return done


def _looks(
    settings: ProducerSettings, root: Path | None, found: str, watch_s: float | None
) -> Iterator[Report]:
    """Yields one report, or, to who watches, one after the other."""
    from ops.drift.show.views import deltas

    while True:
        try:
            with options.client(settings) as client:
                facts = gather(client, settings, root, found)
                facts = replace(facts, drift=deltas(client, Keys(settings.queue), facts.now_ms))
            yield Report(facts=facts, results=check(facts))
        except ServerError as error:
            away = CheckResult(FAILURE, "server", with_origin(str(error)))
            yield Report(facts=None, results=[away])
        if watch_s is None:
            return
        time.sleep(watch_s)


def _show(report: Report, as_json: bool, *, clear: bool = False) -> None:
    if clear:
        click.clear()
    if as_json:
        console.say_json(report.to_json())
    elif report.facts is not None:
        _draw(report, report.facts)
    elif clear:  # else the error's line says it
        console.say(report.results[0].text)


def _draw(report: Report, facts: Facts) -> None:
    out, server = console.out(), facts.server
    about = (
        f": {server.name} {server.version}, up {server.uptime_s:,} s, "
        f"{server.used_memory_bytes / 1024**2:,.1f} MiB used, {server.clients} connections\n"
    )
    url, queue = (console.styled(text, "bold") for text in (facts.url, facts.queue))
    out.print(url, f" (by {facts.found}), queue ", queue, about, sep="")
    for line in report.repaired:
        console.say(line)
    results = ((r.check, console.styled(r.level, _STYLES[r.level]), r.text) for r in report.results)
    for table in (console.DataTable("check", "", "").filled(results), *_tables(facts)):
        if table.row_count:
            out.print(table, "")


def _tables(facts: Facts) -> list[console.DataTable]:
    table, waits = console.DataTable, backlogs(facts.streams, facts.workers)
    return [
        table("stream", "entries>", "leased>", "payload bytes>", "oldest (ms)>", "backlog (s)>").filled(
            (name, one.entries, one.leased, one.payload_bytes, one.oldest_age_ms, waits[name].backlog_s)
            for name, one in facts.streams.items()
        ),
        table("worker", "pid>", "finished>", "seen (ms ago)>", "serves").filled(
            (
                one.name,
                str(one.pid),
                one.finished,
                one.seen_ms_ago,
                ", ".join(filter(None, (one.model, one.bank))),
            )
            for one in facts.workers
        ),
        table("stage, last 5 minutes", "requests>", *(f"{name} (ms)>" for name in STATISTICS)).filled(
            (
                f"{kind}: {stage.replace('_', ' ')}",
                row["requests"],
                *(f"{row[name]:,.3f}" for name in STATISTICS),
            )
            for kind, rows in facts.stages.items()
            for stage, row in rows.items()
        ),
        table("counter", "since the first request>").filled(facts.counters.items()),
        table("OOD delta, last 24 h", "", ">").filled(
            (model, name, f"{value:,.0f}" if name.startswith("n_") else f"{value:+.4f}")
            for model, values in sorted(facts.drift.items())
            for name, value in values.items()
        ),
        table("on this machine", "").filled(facts.artifacts.items()),
    ]
