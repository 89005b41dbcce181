"""`amn run`: the main job, end to end, measured."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import click

from ops import console
from ops.commands import options
from ops.errors import RunFailed
from ops.local.server import ServerSettings
from ops.local.stack import Stack, StackSettings
from ops.run.measured import RunPlan, measure
from ops.run.summary import RunSummary
from ops.run.summary_view import view
from ops.run.traffic import TrafficSettings
from ops.sample import Sample
from ops.settings import (
    WORKERS_MAX,
    WORKERS_SHOWN,
    artifacts_folder,
    external_url,
    sample_path,
    workers_default,
)
from producer.session.requests import new_id


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choices:
    """The command line, as typed."""

    requests: int
    rate: float
    workers: int
    policy: str
    sample_rate: float
    sample: Path | None
    artifacts: Path | None
    url: str | None = field(repr=False)
    queue: str | None
    in_flight: int
    warm_up: int
    kill_worker: bool
    worker_log: Path | None


@click.command(short_help="Run the sample through the queue, and measure.")
@click.option("--requests", "-n", type=click.IntRange(1, 10_000_000), default=20_000, show_default=True)
@click.option(
    "--rate",
    "-r",
    type=click.FloatRange(0, 1_000_000),
    default=500.0,
    show_default=True,
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
@click.option("--sample", type=click.Path(path_type=Path, dir_okay=False), help="Another file of sequences.")
@options.artifacts
@options.url_or_own
@options.queue
@click.option(
    "--in-flight",
    type=click.IntRange(64, 16_384),
    default=1024,
    show_default=True,
    help="Most requests waiting at once.",
)
@click.option(
    "--warm-up",
    type=click.IntRange(0, 100_000),
    default=200,
    show_default=True,
    help="Requests before the measured ones.",
)
@click.option("--kill-worker", is_flag=True, help="SIGKILL one AMN worker half-way; nothing may be lost.")
@click.option(
    "--worker-log", type=click.Path(path_type=Path, dir_okay=False), help="Keep the workers' logs here."
)
@options.as_json
def run(as_json: bool, **choices: object) -> None:
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
    summary = _run(_Choices(**choices))  # type: ignore[arg-type]
    if as_json:
        console.say_json(summary.to_json())
    else:
        console.out().print(view(summary))
    if not summary.exactly_once:
        raise RunFailed(
            f"{summary.requests} requests, but {summary.answered} answered, {summary.failed} failed "
            f"({', '.join(summary.failures) or 'no code'}) and {summary.duplicates} stray answers; "
            "see `amn doctor`, or run again with --worker-log FILE"
        )


def _run(choices: _Choices) -> RunSummary:
    notes = console.err()
    sample = Sample.load(sample_path(choices.sample))
    url = external_url(choices.url)
    run_id = f"run-{new_id()[:12]}"
    own_queue = url is not None and choices.queue is None and choices.workers > 0
    plan = RunPlan(
        traffic=TrafficSettings(
            requests=choices.requests, rate=choices.rate, in_flight_max=choices.in_flight, run_id=run_id
        ),
        warm_up=choices.warm_up,
        kill_worker=choices.kill_worker,
        own_queue=own_queue,
    )
    scratch = Path(tempfile.mkdtemp(prefix="amn-run-"))
    stack = Stack(
        StackSettings(
            url=url,
            server=ServerSettings(),
            counts=_counts(choices),
            queue=run_id if own_queue else choices.queue or "main",
            policy=choices.policy,
            artifacts=artifacts_folder(choices.artifacts),
            sample_rate=choices.sample_rate,
            worker_log=choices.worker_log or scratch / "workers.log",
        )
    )
    try:
        with notes.status("starting the server and the workers"):
            stack.__enter__()
        try:
            return measure(stack, sample, plan, notes)
        finally:
            stack.__exit__()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _counts(choices: _Choices) -> dict[str, int]:
    if not choices.workers:
        return {}
    return {"amn": choices.workers, "fallback": 1, "shadow": 1 if choices.sample_rate else 0}
