"""`amn doctor`: is it well?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ops import console
from ops.commands import options
from ops.drift.show.views import deltas
from ops.errors import Unhealthy
from ops.health import FAILURE, OK, WARNING, CheckResult, Facts, Report, alive_here, beside, check, gather
from ops.health import keys as health_keys
from ops.settings import producer_settings, service, with_origin
from producer.errors import ServerError
from producer.keys import Keys
from producer.settings import ProducerSettings

_STYLE = {OK: "green", FAILURE: "bold red"}


@click.command(short_help="Is the service well?")
@click.option(
    "--alive",
    type=click.Choice(["amn", "fallback", "shadow"]),
    help="Only ask whether a worker of this kind on this host is alive (for container health checks).",
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
    alive: str | None,
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
    root = artifacts or (Path(found.artifacts) if found.artifacts else None)
    if alive is not None:
        name = alive_here(settings, alive)
        console.say_json({"alive": name}) if as_json else console.say(f"{name} is alive")
        return
    repaired = _changed(settings, **first)
    while watch_s is not None:
        _show(_examined(settings, root, found.found), as_json, clear=not as_json)
        time.sleep(watch_s)
    report = replace(_examined(settings, root, found.found), repaired=repaired)
    _show(report, as_json)
    bad = (FAILURE, WARNING) if strict else (FAILURE,)
    failed = [result for result in report.results if result.level in bad]
    if failed:
        texts = "; ".join(f"{result.check}: {result.text}" for result in failed)
        raise Unhealthy(f"{len(failed)} of {len(report.results)} checks failed: {texts}")


def _changed(settings: ProducerSettings, *, mend: bool, forget_sender: bool) -> list[str]:
    """Does what was asked for before the look; a sentence for each thing that was done."""
    done: list[str] = []
    if mend or forget_sender:
        with options.client(settings) as client:
            done += health_keys.repair(client, settings) if mend else []
            done += [beside.forget_sender(client, Keys(settings.queue))] if forget_sender else []
    return done


def _examined(settings: ProducerSettings, root: Path | None, found: str) -> Report:
    try:
        facts = gather(settings, root, found)
        with options.client(settings) as client:
            drift = deltas(client, Keys(settings.queue), facts.now_ms)
    except ServerError as error:
        return Report(facts=None, results=[CheckResult(FAILURE, "server", with_origin(str(error)))])
    return Report(facts=replace(facts, drift=drift), results=check(facts))


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
    for result in report.results:
        level = console.styled(result.level, _STYLE.get(result.level, "yellow"))
        checks.add_row(result.check, level, result.text)
    out.print(checks, "")
    for columns, rows in _TABLES.items():
        table = console.DataTable(*columns)
        for row in rows(facts):
            table.add_row(*("-" if cell is None else cell for cell in row))
        if table.row_count:
            out.print(table, "")


def _stream_rows(facts: Facts) -> Iterator[tuple[Any, ...]]:
    for name, stream in facts.streams.items():
        yield name, stream.entries, stream.leased, stream.payload_bytes, stream.oldest_age_ms


def _worker_rows(facts: Facts) -> Iterator[tuple[Any, ...]]:
    for one in facts.workers:
        served = ", ".join(filter(None, (one.model, one.bank)))
        yield one.name, str(one.pid), one.finished, one.seen_ms_ago, served


def _drift_rows(facts: Facts) -> Iterator[tuple[Any, ...]]:
    for model, values in sorted(facts.drift.items()):
        for name, value in values.items():
            yield model, name, f"{value:,.0f}" if name.startswith("n_") else f"{value:+.4f}"


#: The tables below the checks: columns, and how their rows are made.
_TABLES: dict[tuple[str, ...], Callable[[Facts], Iterator[tuple[Any, ...]]]] = {
    ("stream", "entries>", "leased>", "payload bytes>", "oldest (ms)>"): _stream_rows,
    ("worker", "pid>", "finished>", "seen (ms ago)>", "serves"): _worker_rows,
    ("counter", "since the first request>"): lambda facts: iter(facts.counters.items()),
    ("OOD delta, last 24 h", "", ">"): _drift_rows,
    ("on this machine", ""): lambda facts: iter(facts.artifacts.items()),
}
