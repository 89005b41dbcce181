"""`amn jobs`: batch files as RQ jobs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import click
import redis

from ops import console
from ops.commands import options
from ops.commands.predict import View, file_options, settings_of
from ops.commands.predict import show as show_summary
from ops.errors import RunStopped
from ops.settings import producer_settings
from producer.settings import ProducerSettings
from producer.transport.connection import driver_errors
from workers.pool.child import follow_parent
from workers.pulse import Pulse


@click.group(short_help="Whole files as jobs, for later.")
def jobs() -> None:
    """Hand whole files over, and come back later. `amn up` runs a worker for them.

    \b
    Examples:
      amn jobs submit predict documents.parquet --out predictions/
      amn jobs list
      amn jobs watch ID
      RQ_REDIS_URL="$REDIS_URL" rq info
    """


@jobs.group()
def submit() -> None:
    """Enqueue a job; its id is printed."""


@submit.command("predict")
@file_options
@options.server
def submit_predict(settings: ProducerSettings, **how: Any) -> None:
    """`amn predict` as a job. The worker must see the same files under the same paths."""
    from ops import jobs as jobs_

    with driver_errors(settings.url):
        console.say(jobs_.submit_predict(settings, settings_of(**how)))


@jobs.command()
@click.option("--burst", is_flag=True, help="Leave when no job waits.")
@click.option("--log-level", default="info")
@options.server
def worker(burst: bool, log_level: str, settings: ProducerSettings) -> None:
    """Run jobs until Ctrl-C or SIGTERM; the job at hand is finished first."""
    from ops.jobs import work
    from workers.pool.failures import last_words

    follow_parent()
    os.environ["REDIS_URL"] = settings.url  # what the job, in its forked process, connects to
    with last_words(settings, "jobs worker"), driver_errors(settings.url):
        pulse = Pulse()
        pulse.ready()
        work(settings, pulse.beat, burst=burst, log_level=log_level)
        pulse.close()


@jobs.command("list")
@options.url
@options.as_json
def list_jobs(url: str | None, as_json: bool) -> None:
    """Show jobs with their progress, newest first."""
    from ops.jobs import listed

    with _connection(url) as connection:
        rows = listed(connection)
    if as_json:
        console.say_json(rows)
        return
    table = console.DataTable("job", "status", "rows done", "enqueued (UTC)", "what")
    for row in rows:
        what = _why(row) or row["description"]
        table.add_row(row["id"], row["status"], _done(row), row["enqueued_at"][:19], what)
    console.out().print(table if rows else "no jobs; submit one: amn jobs submit predict SOURCE --out TARGET")


@jobs.command()
@click.argument("job", metavar="ID")
@options.url
@options.as_json
def show(job: str, url: str | None, as_json: bool) -> None:
    """Show one job: its progress, and its summary or its error."""
    with _connection(url) as connection:
        row = _row(connection, job)
    if as_json:
        console.say_json(row)
        return
    for name in ("id", "status", "description", "enqueued_at", "error"):
        if row[name]:
            console.say(f"{name:12} {_why(row) if name == 'error' else row[name]}")
    console.say(f"{'rows':12} {_done(row)}")
    if row["result"]:
        show_summary(row["result"], False)


@jobs.command()
@click.argument("job", metavar="ID")
@options.url
def watch(job: str, url: str | None) -> None:
    """Follow a job until it ends; the exit code is 1 when it failed."""
    with _connection(url) as connection, View() as view:
        while (row := _row(connection, job))["status"] in ("queued", "started"):
            stalled = f", no answers for {row['stalled_s']:,} s" if row["stalled_s"] else ""
            note = f"{row['failed']:,} failed, {row['escalated']:,} escalated{stalled}"
            view.draw(row["status"], row["done"], row["rows"], note)
            time.sleep(0.5)
    if row["status"] != "finished":
        raise RunStopped(f"job {job} {row['status']}: {_why(row) or 'what is done stays'}")
    show_summary(row["result"], False)


@jobs.command()
@click.argument("job", metavar="ID")
@options.url
def cancel(job: str, url: str | None) -> None:
    """Take a job off the queue, or ask one that runs to end. What is done stays."""
    from ops import jobs as jobs_

    with _connection(url) as connection:
        console.say(f"{job}: {jobs_.cancel(connection, job)}")


@contextmanager
def _connection(url: str | None) -> Iterator[redis.Redis]:
    from ops.jobs import rq_connection

    settings = producer_settings(url, None)
    with driver_errors(settings.url), closing(rq_connection(settings)) as connection:
        yield connection


def _row(connection: redis.Redis, job: str) -> dict[str, Any]:
    from ops.jobs import found

    return found(connection, job)


def _done(row: dict[str, Any]) -> str:
    return f"{row['done']:,} of {row['rows']:,}"


def _why(row: dict[str, Any]) -> str:
    """Return the error of a job without the name of its class, which is for scripts."""
    error: str = row["error"]
    name, _, text = error.partition(": ")
    return text if ".errors." in name and " " not in name else error
