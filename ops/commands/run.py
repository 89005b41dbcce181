"""`amn run`: the main job, end to end, measured."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import click

from ops import console
from ops.commands import options
from ops.errors import RunFailed
from ops.local.server import ServerSettings
from ops.local.stack import Stack
from ops.run.measured import measure, remove_queue
from ops.run.summary import exactly_once, view
from ops.run.traffic import TrafficSettings
from ops.sample import Sample
from ops.settings import (
    WORKERS_MAX,
    WORKERS_SHOWN,
    external_url,
    sample_path,
    workers_default,
)
from producer.session.requests import new_id


@click.command(short_help="Run the sample through the queue, and measure.")
@click.option("--requests", "-n", type=click.IntRange(1, 10_000_000), default=20_000)
@click.option(
    "--rate",
    "-r",
    type=click.FloatRange(0, 1_000_000),
    default=500.0,
    help="Requests per second, on a fixed schedule; 0 for as fast as it goes.",
)
@click.option(
    "--workers",
    "-w",
    type=click.IntRange(0, WORKERS_MAX),
    default=workers_default,
    show_default=WORKERS_SHOWN,
    help="AMN workers; 0 uses those that run already. One core is left for the server, the producer and "
    "the rest.",
)
@options.policy
@options.sample_rate
@click.option("--sample", type=options.FILE, help="Another file of sequences.")
@options.artifacts
@options.url_or_own
@options.queue
@click.option(
    "--in-flight", type=click.IntRange(64, 16_384), default=1024, help="Most requests waiting at once."
)
@click.option(
    "--warm-up", type=click.IntRange(0, 100_000), default=200, help="Requests before the measured ones."
)
@click.option("--kill-worker", is_flag=True, help="SIGKILL one AMN worker half-way; nothing may be lost.")
@click.option("--worker-log", type=options.FILE, help="Keep the workers' logs here.")
@options.as_json
def run(as_json: bool, **choices: Any) -> None:
    """Send real contexts through the queue, and measure what comes back.

    Starts an embedded server (none when --url or REDIS_URL names one), AMN workers, a fallback and
    a shadow worker; pushes the shipped sample at a fixed rate; ends with a summary. Exit code 0
    only if every request got exactly one final answer.

    Of the requests 2 % go to a high-stakes lane and 1 % are marked as long; all ask for the
    provisional answer too, so that AMN is measured on the escalated ones as well. On a server of
    yours the run uses a queue of its own and removes it, unless --queue or --workers 0 is given.

    \b
    Examples:
      amn run --requests 2000 --rate 500
      amn run --requests 20000 --rate 0 --kill-worker
      amn run --requests 2000 --rate 500 --json | jq .latency_ms.p95
    """
    if choices["kill_worker"] and not choices["workers"]:
        raise click.UsageError("--kill-worker kills a worker of this run, and --workers 0 starts none")
    summary = _measured(choices)
    console.answer(as_json, summary, lambda found: console.out().print(view(found)))
    if not exactly_once(summary):
        raise RunFailed(
            f"{summary['requests']} requests, but {summary['answered']} answered, {summary['failed']} failed "
            f"({', '.join(summary['failures']) or 'no code'}) and {summary['duplicates']} stray answers; "
            "see `amn doctor`, or run again with --worker-log FILE"
        )


def _measured(choices: dict[str, Any]) -> dict[str, Any]:
    notes, sample = console.err(), Sample.load(sample_path(choices["sample"]))
    run_id, url, workers = f"run-{new_id()[:12]}", external_url(choices["url"]), choices["workers"]
    own_queue = url is not None and choices["queue"] is None and workers > 0
    traffic = TrafficSettings(
        requests=choices["requests"], rate=choices["rate"], in_flight_max=choices["in_flight"], run_id=run_id
    )
    counts = options.worker_counts(choices, fallbacks=1) if workers else {}
    with contextlib.ExitStack() as undo:
        scratch = tempfile.TemporaryDirectory(prefix="amn-run-", ignore_cleanup_errors=True)
        settings = options.pool_settings(
            choices,
            url=url or "",
            queue=run_id if own_queue else choices["queue"] or "main",
            log_file=choices["worker_log"] or Path(undo.enter_context(scratch)) / "workers.log",
        )
        stack = Stack(counts, settings, None if url else ServerSettings())
        with notes.status("starting the server and the workers"):
            undo.enter_context(stack)
        if own_queue:
            undo.callback(remove_queue, stack)
        return measure(stack, sample, traffic, choices["warm_up"], choices["kill_worker"])
