"""`amn jobs`: batch files as RQ jobs."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from ops import console
from ops.commands import options
from ops.files import FileOptions
from ops.settings import producer_settings
from producer.settings import ProducerSettings
from producer.transport.connection import driver_errors
from workers.pool.child import follow_parent, tell_ready


@click.group(short_help="Whole files as jobs, for later.")
def jobs() -> None:
    """Hand whole files over, and come back later. `amn up` runs a worker for them.

    \b
    Examples:
      amn jobs submit predict-file contexts.npy vectors.npy
      amn jobs list
      RQ_REDIS_URL="$REDIS_URL" rq info
    """


@jobs.group()
def submit() -> None:
    """Enqueue a job; its id is printed."""


@submit.command("predict-file")
@options.file_of_contexts
@options.server
def predict_file(source: Path, target: Path, settings: ProducerSettings, **how: Any) -> None:
    """`amn predict` as a job. The worker must see the same files under the same paths."""
    from ops.jobs import submit_predict_file

    with driver_errors(settings.url):
        console.say(submit_predict_file(settings, source, target, FileOptions(**how)))


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
        tell_ready()
        work(settings, burst=burst, log_level=log_level)


@jobs.command("list")
@options.url
@options.as_json
def list_jobs(url: str | None, as_json: bool) -> None:
    """Show jobs with their progress, newest first."""
    from ops.jobs import listed, rq_connection

    settings = producer_settings(url, None)
    with driver_errors(settings.url), closing(rq_connection(settings)) as connection:
        rows = listed(connection)
    if as_json:
        console.say_json(rows)
        return
    table = console.DataTable("job", "status", "rows done", "enqueued (UTC)", "what")
    for row in rows:
        done, what = f"{row['done']:,} of {row['rows']:,}", row["error"] or row["description"]
        table.add_row(row["id"], row["status"], done, row["enqueued_at"][:19], what)
    console.out().print(table if rows else "no jobs; submit one: amn jobs submit predict-file IN.npy OUT.npy")
