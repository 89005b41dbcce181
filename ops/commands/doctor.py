"""`amn doctor`: is it well?"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import click

from ops import console
from ops.commands import options
from ops.drift.measures.window import Delta
from ops.errors import Unhealthy
from ops.health import FAILURE, OK, WARNING, Facts, Finding, Report, alive_here, gather, judge
from ops.repair import repair
from ops.settings import producer_settings, service, with_origin
from producer.errors import ServerError
from producer.settings import ProducerSettings
from producer.transport.connection import connect, driver_errors

_STYLE = {OK: "green", FAILURE: "bold red"}


@click.command(short_help="Is the service well?")
@click.option(
    "--alive",
    type=click.Choice(["amn", "fallback", "shadow"]),
    help="Only ask whether a worker of this kind on this host is alive (for container health checks).",
)
@click.option("--strict", is_flag=True, help="Warnings fail too.")
@click.option("--repair", "mend", is_flag=True, help="First mend the keys that cannot be right.")
@click.option(
    "--watch", "watch_s", type=click.FloatRange(0.5), metavar="SECONDS", help="Look again and again."
)
@options.artifacts
@options.url
@options.queue
@options.as_json
def doctor(
    alive: str | None,
    strict: bool,
    mend: bool,
    watch_s: float | None,
    artifacts: Path | None,
    url: str | None,
    queue: str | None,
    as_json: bool,
) -> None:
    """Look at server, queue, workers, dead letters, counters and the shadow's OOD delta.

    Exit code 1 when a check fails or the server cannot be asked; warnings alone leave it 0, unless
    --strict. A worker is well when it ends what it holds: a process that merely lives is not enough.

    Changes nothing, unless with --repair: then streams whose ids are used up or far ahead of the
    clock, keys of another type and wrong counters are mended first. What waits is kept, in order;
    what is leased at that moment runs again, and is answered once.

    \b
    Examples:
      amn doctor
      amn doctor --json | jq .findings
      amn doctor --watch 2
      amn doctor --repair
      amn doctor --alive amn
    """
    settings, found = producer_settings(url, queue), service(url)
    root = artifacts or (Path(found.artifacts) if found.artifacts else None)
    if alive is not None:
        name = alive_here(settings, alive)
        console.say_json({"alive": name}) if as_json else console.say(f"{name} is alive")
        return
    repaired = _repaired(settings) if mend else []
    while watch_s is not None:
        _show(_examined(settings, root, found.found), as_json, clear=not as_json)
        time.sleep(watch_s)
    report = replace(_examined(settings, root, found.found), repaired=repaired)
    _show(report, as_json)
    bad = (FAILURE, WARNING) if strict else (FAILURE,)
    failures = [finding for finding in report.findings if finding.level in bad]
    if failures:
        texts = "; ".join(f"{finding.check}: {finding.text}" for finding in failures)
        raise Unhealthy(f"{len(failures)} of {len(report.findings)} checks failed: {texts}")


def _repaired(settings: ProducerSettings) -> list[str]:
    client = connect(settings, retries=0)
    try:
        with driver_errors(settings.url):
            return repair(client, settings)
    finally:
        client.close()


def _examined(settings: ProducerSettings, root: Path | None, found: str) -> Report:
    try:
        facts = gather(settings, root, found)
    except ServerError as error:
        return Report(facts=None, findings=[Finding(FAILURE, "server", with_origin(str(error)))])
    return Report(facts=facts, findings=judge(facts))


def _show(report: Report, as_json: bool, *, clear: bool = False) -> None:
    if clear:
        click.clear()
    if as_json:
        console.say_json(report.to_json())
    elif report.facts is not None:
        _draw(report, report.facts)
    elif clear:  # else the error's line says it
        console.say(report.findings[0].text)


def _draw(report: Report, facts: Facts) -> None:
    out, server = console.out(), facts.server
    out.print(
        console.styled(facts.url, "bold"),
        f" (by {facts.found}), queue ",
        console.styled(facts.queue, "bold"),
        f": {server.name} {server.version}, up {server.uptime_s:,} s, "
        f"{server.used_memory_bytes / 1024**2:,.1f} MiB used, {server.clients} connections\n",
        sep="",
    )
    for line in report.repaired:
        console.say(line)
    checks = console.DataTable("check", "", "")
    for finding in report.findings:
        level = console.styled(finding.level, _STYLE.get(finding.level, "yellow"))
        checks.add_row(finding.check, level, finding.text)
    for table in (checks, _streams(facts), _workers(facts), _counters(facts), _drift(facts), _ids(facts)):
        if table.row_count:
            out.print(table, "")


def _streams(facts: Facts) -> console.DataTable:
    table = console.DataTable("stream")
    for column in ("entries", "leased", "payload bytes", "oldest (ms)"):
        table.add_column(column, justify="right")
    for name, stream in facts.streams.items():
        size = "-" if stream.payload_bytes is None else f"{stream.payload_bytes:,}"
        age = "-" if stream.oldest_age_ms is None else f"{stream.oldest_age_ms:,}"
        table.add_row(name, f"{stream.entries:,}", f"{stream.leased:,}", size, age)
    return table


def _workers(facts: Facts) -> console.DataTable:
    table = console.DataTable("worker")
    for column in ("pid", "finished", "seen (ms ago)"):
        table.add_column(column, justify="right")
    table.add_column("serves")
    for worker in facts.workers:
        numbers = (str(worker.pid), f"{worker.finished:,}", f"{worker.seen_ms_ago:,}")
        table.add_row(worker.name, *numbers, ", ".join(filter(None, (worker.model, worker.bank))))
    return table


def _counters(facts: Facts) -> console.DataTable:
    table = console.DataTable("counter")
    table.add_column("since the first request", justify="right")
    for name, count in facts.counters.items():
        table.add_row(name, f"{count:,}")
    return table


def _drift(facts: Facts) -> console.DataTable:
    table = console.DataTable("shadow, last 24 h", "")
    for column in ("sampled", "with truth", "mean cosine"):
        table.add_column(column, justify="right")
    for model, found in sorted(facts.drift.items()):
        for name, part in found.slices.items():
            mean = f"{part.scores['amn'].mean:.4f}" if part.n else "-"
            table.add_row(model, f"slice {name}", f"{part.predictions:,}", f"{part.n:,}", mean)
        if found.ood_delta is not None:
            table.add_row(model, "OOD delta", "", "", _delta(found.ood_delta))
    return table


def _delta(delta: Delta) -> str:
    if math.isnan(delta.standard_error):
        return f"{delta.value:+.4f}"
    return f"{delta.value:+.4f} +- {delta.standard_error:.4f}"


def _ids(facts: Facts) -> console.DataTable:
    table = console.DataTable("on this machine", "")
    for name, value in facts.artifacts.items():
        table.add_row(name, value)
    return table
