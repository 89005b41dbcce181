"""Coarse jobs on RQ: a file is one job, and its rows go through the queue.

RQ costs a fork and about twenty round trips a job, which is nothing beside a file and much beside a
vector. Jobs are stored as JSON, never pickled: whoever can write to the server can then name a
function and its arguments, but not run code of theirs in ours.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis
from rq import Queue, Worker, get_current_job
from rq.job import Job
from rq.serializers import JSONSerializer

from amn.files import check_output
from amn.output import without_surrogates
from ops.errors import JobsUnavailable
from ops.files import FileOptions, open_contexts, predict_through_queue
from producer import Producer
from producer.address import CLUSTER, parse_address
from producer.connection import connect
from producer.settings import ProducerSettings

#: Name of the RQ queue.
JOBS = "amn-jobs"
_TIMEOUT_S = 24 * 3600
_KEPT_S = 7 * 24 * 3600
_META_EVERY_S = 1.0
#: An idle worker comes back from its blocking read well within this.
_WORKER_TTL_S = 60


def jobs_queue(connection: redis.Redis) -> Queue:
    """The RQ queue of this house, with its JSON serializer."""
    return Queue(JOBS, connection=connection, serializer=JSONSerializer)


def jobs_possible(url: str) -> bool:
    """Whether RQ can use this server."""
    return parse_address(url).kind != CLUSTER


def rq_connection(settings: ProducerSettings) -> redis.Redis:
    """A connection for RQ; its blocking reads outlast the ordinary socket timeout.

    Raises:
        JobsUnavailable: The server is a cluster, where RQ's keys lie on different nodes.
    """
    if not jobs_possible(settings.url):
        raise JobsUnavailable(
            "RQ, which runs the jobs, does not know Redis Cluster; give the jobs a server of their own "
            "with --url, or use `amn predict`"
        )
    return connect(settings, block_ms=(_WORKER_TTL_S + 30) * 1000)


def submit_predict_file(settings: ProducerSettings, source: Path, target: Path, options: FileOptions) -> str:
    """Enqueues a file; both paths are checked now and stored absolute. Returns the job's id.

    Raises:
        FileRefused: The input is not a file of contexts, or the output cannot be written.
    """
    source, target = source.resolve(), target.resolve()
    rows = len(open_contexts(source))
    check_output(target, source)
    arguments: dict[str, Any] = {
        "source": str(source),
        "target": str(target),
        "queue": settings.queue,
        "lane": options.lane,
        "domain": options.domain,
        "normalize": options.normalize,
        "fast": options.fast,
    }
    connection = rq_connection(settings)
    try:
        job = jobs_queue(connection).enqueue(
            "ops.jobs.predict_file",
            kwargs=arguments,
            meta={"done": 0, "rows": rows},
            description=without_surrogates(f"predict-file {source} {target}"),
            job_timeout=_TIMEOUT_S,
            result_ttl=_KEPT_S,
            failure_ttl=_KEPT_S,
        )
        return str(job.id)
    finally:
        connection.close()


def predict_file(
    *, source: str, target: str, queue: str, lane: str, domain: str, normalize: bool, fast: bool
) -> dict[str, Any]:
    """The job: streams the file through the queue; the result is the summary of `amn predict`."""
    job = get_current_job()
    saved_at_s = 0.0

    def on_progress(done: int) -> None:
        nonlocal saved_at_s
        if job is not None and time.monotonic() - saved_at_s > _META_EVERY_S:
            saved_at_s = time.monotonic()
            job.meta["done"] = done
            job.save_meta()  # type: ignore[no-untyped-call]

    options = FileOptions(lane=lane, domain=domain, normalize=normalize, fast=fast)
    with Producer(settings=ProducerSettings.from_environment(queue=queue)) as producer:
        result = predict_through_queue(Path(source), Path(target), producer, options, on_progress)
    if job is not None:
        job.meta["done"] = result.rows
        job.save_meta()  # type: ignore[no-untyped-call]
    return result.to_json()


def work(settings: ProducerSettings, *, burst: bool, log_level: str) -> None:
    """Runs jobs until SIGTERM or Ctrl-C; the job at hand is finished first.

    The forking worker fits here: it loads only the client side, so a fork is cheap, and a job that
    is killed is noticed and marked as failed by its parent.
    """
    connection = rq_connection(settings)
    worker = Worker(
        [jobs_queue(connection)],
        connection=connection,
        serializer=JSONSerializer,
        worker_ttl=_WORKER_TTL_S,
    )
    worker.work(burst=burst, logging_level=log_level.upper())


def listed(connection: redis.Redis) -> list[dict[str, Any]]:
    """All jobs that RQ still knows, newest first."""
    queue = jobs_queue(connection)
    registries = (
        queue.started_job_registry,
        queue.finished_job_registry,
        queue.failed_job_registry,
        queue.deferred_job_registry,
        queue.scheduled_job_registry,
    )
    ids = list(queue.job_ids)
    for registry in registries:
        ids += registry.get_job_ids()
    found = Job.fetch_many(list(dict.fromkeys(ids)), connection=connection, serializer=JSONSerializer)
    rows = [_row(job) for job in found if job is not None]
    return sorted(rows, key=lambda row: row["enqueued_at"], reverse=True)


def _row(job: Job) -> dict[str, Any]:
    meta = job.get_meta()
    enqueued: datetime = job.enqueued_at or job.created_at or datetime.now(UTC)
    latest = job.latest_result()
    error = ""
    if latest is not None and latest.exc_string:
        error = latest.exc_string.strip().splitlines()[-1]
    return {
        "id": job.id,
        "status": str(job.get_status(refresh=False).value),
        "done": meta.get("done", 0),
        "rows": meta.get("rows", 0),
        "description": job.description or "",
        "enqueued_at": enqueued.isoformat(timespec="seconds"),
        "result": latest.return_value if latest is not None else None,
        "error": error,
    }
