"""Coarse jobs on RQ: a file is one job, and its rows go through the queue.

RQ costs a fork and about twenty round trips a job, which is nothing beside a file and much beside a
vector. Jobs are stored as JSON, and ops/known_jobs.py sees to it that nothing but `predict_file` runs. What
is left to whoever can write to the jobs' queue: have any .npy file that this user can read predicted, and
any .npy file written that this user can write.
"""

from __future__ import annotations

import os
import time
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
from rq import Worker, get_current_job
from rq.job import JOB_ID_PATTERN
from rq.results import Result

from amn.files import check_output
from amn.output import without_surrogates
from ops.errors import FileRefused, JobsUnavailable
from ops.files import FileOptions, open_contexts, predict_through_queue
from ops.known_jobs import (
    IS_BOOL,
    Check,
    Function,
    KnownJob,
    KnownQueue,
    KnownWorker,
    inflated,
    is_name,
    is_text,
    parsed,
    text_of,
)
from producer import Producer
from producer.address import CLUSTER, parse_address
from producer.messages import LANES
from producer.settings import ProducerSettings
from producer.transport.connection import connect

#: Name of the RQ queue.
JOBS = "amn-jobs"
_SUFFIX = ".npy"
#: Jobs that a listing shows at most.
_LISTED_MAX = 1_000
_META_EVERY_S = 1.0
#: An idle worker comes back from its blocking read well within this.
_WORKER_TTL_S = 60


def jobs_queue(connection: redis.Redis) -> KnownQueue:
    """The RQ queue of this house."""
    return KnownQueue(JOBS, connection)


def jobs_possible(url: str) -> bool:
    """Says whether RQ can use this server."""
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
        FileRefused: The input is not a file of contexts, or the output cannot be written; or one is not
            named as the files of jobs are.
    """
    source, target = source.resolve(), target.resolve()
    for path in (source, target):
        if not _is_path(str(path)):
            raise FileRefused(f"{path}: the files of a job have {_IS_PATH[1]}")
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
            _PREDICT_FILE,
            kwargs=arguments,
            meta={"done": 0, "rows": rows},
            description=without_surrogates(f"predict-file {source} {target}"),
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
    worker = _JobsWorker(jobs_queue(connection), _FUNCTIONS, _WORKER_TTL_S)
    worker.work(burst=burst, logging_level=log_level.upper())


def _is_path(value: Any) -> bool:
    """Says whether a job may read or write this path: one that says plainly that it is a file of ours."""
    if not isinstance(value, str) or len(value) > 4096 or not without_surrogates(value).isprintable():
        return False
    path = Path(value)
    whole = path.is_absolute() and str(path) == value and ".." not in path.parts
    return whole and path.suffix == _SUFFIX and (not os.path.lexists(path) or path.is_file())


class _JobsWorker(KnownWorker, Worker):
    """Forks for each job, and runs nothing but the functions below."""


_IS_PATH: Check = (_is_path, f"an absolute path without '..' that ends in {_SUFFIX}, and no special file")
_PREDICT_FILE = "ops.jobs.predict_file"
_FUNCTIONS = {
    _PREDICT_FILE: Function(
        run=predict_file,
        arguments={
            "source": _IS_PATH,
            "target": _IS_PATH,
            "queue": is_name(),
            "lane": (lambda value: value in LANES, f"one of {', '.join(LANES)}"),
            "domain": is_text(512),
            "normalize": IS_BOOL,
            "fast": IS_BOOL,
        },
    )
}


def listed(connection: redis.Redis) -> list[dict[str, Any]]:
    """All jobs that RQ still knows, newest first; of what is no job of ours, what can be said."""
    queue = jobs_queue(connection)
    registries = (
        queue.started_job_registry,
        queue.finished_job_registry,
        queue.failed_job_registry,
    )
    with connection.pipeline(transaction=False) as pipe:
        pipe.lrange(queue.key, 0, _LISTED_MAX)
        pipe.lrange(queue.intermediate_queue.key, 0, _LISTED_MAX)
        for registry in registries:
            pipe.zrevrange(registry.key, 0, _LISTED_MAX)
        found = [one for entries in pipe.execute() for one in entries]
        names = [text_of(one).partition(":")[0] for one in found]
        ids = [name for name in dict.fromkeys(names) if JOB_ID_PATTERN.fullmatch(name)]
        for name in ids:
            pipe.hgetall(KnownJob.key_for(name))
            pipe.xrevrange(Result.get_key(name), count=1)  # type: ignore[no-untyped-call]
        stored = pipe.execute(raise_on_error=False)
    rows = []
    for name, fields, results in zip(ids, stored[::2], stored[1::2], strict=True):
        if isinstance(fields, dict) and fields:
            job = KnownJob(name, connection=connection)
            job.restore(fields)
            rows.append(_row(job, results[0][1] if isinstance(results, list) and results else {}))
    return sorted(rows, key=lambda row: str(row["enqueued_at"]), reverse=True)[:_LISTED_MAX]


def _row(job: KnownJob, result: Mapping[bytes, bytes]) -> dict[str, Any]:
    lines = inflated(_decoded(result.get(b"exc_string"))).decode("utf-8", "replace").strip().splitlines()
    done, rows = (job.meta.get(name, 0) for name in ("done", "rows"))
    return {
        "id": job.id,
        "status": str(job.get_status(refresh=False).value),
        "done": done if isinstance(done, int) else 0,
        "rows": rows if isinstance(rows, int) else 0,
        "description": job.description or "",
        "enqueued_at": (job.enqueued_at or job.created_at).isoformat(timespec="seconds"),
        "result": parsed(_decoded(result.get(b"return_value"))),
        "error": text_of(lines[-1].encode()) if lines else "",
    }


def _decoded(stored: bytes | None) -> bytes:
    try:
        return b64decode(stored or b"")
    except ValueError:
        return b""
