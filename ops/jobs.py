"""Coarse jobs on RQ: a batch prediction is one job, and its rows go through the queue.

RQ costs a fork and about twenty round trips a job, which is nothing beside a file and much beside a
vector. Jobs are stored as JSON, and ops/known_jobs.py sees to it that nothing but `predict` runs. What
is left to whoever can write to the jobs' queue: have any file of vectors that this user can read predicted,
and have predictions written wherever this user can write a new file.
"""

from __future__ import annotations

import dataclasses
import os
import re
import reprlib
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import redis
from rq.job import JobStatus
from rq.registry import CanceledJobRegistry
from rq.results import Result

from amn.output import without_surrogates
from ops.errors import FileRefused, JobRefused, JobsUnavailable
from ops.known_jobs import (
    BEAT_S_MAX,
    CANCELLED,
    LISTED_MAX,
    KnownJob,
    KnownQueue,
    KnownWorker,
    Notes,
    end_cancelled,
    inflated,
    parsed,
    text_of,
)
from ops.predict.settings import PredictSettings
from ops.settings import jobs_possible
from producer.messages import PRIORITIES
from producer.settings import ProducerSettings
from producer.transport.connection import connect

#: Name of the RQ queue.
JOBS = "amn-jobs"
_PREDICT = "ops.jobs.predict"
_QUEUE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TEXT_MAX, _TEXTS_MAX = 4096, 1_000


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
    return connect(settings, block_ms=BEAT_S_MAX * 3 * 1000)


def submit_predict(settings: ProducerSettings, asked: PredictSettings) -> str:
    """Enqueues a batch prediction, checked and with absolute paths; returns the job's id.

    Raises:
        FileRefused: A source or the target cannot be used.
    """
    from ops.predict.files import open_data

    sources = [os.path.abspath(source) for source in asked.sources]
    asked = dataclasses.replace(asked, sources=sources, out=str(Path(asked.out).resolve()))
    arguments = dataclasses.asdict(asked) | {"queue": settings.queue}
    try:
        check(arguments)
    except JobRefused as error:
        raise FileRefused(str(error)) from error
    rows = sum(group.rows for group in open_data(asked).groups)
    with closing(rq_connection(settings)) as connection:
        job = KnownQueue(JOBS, connection).enqueue(
            _PREDICT,
            kwargs=arguments,
            meta={"done": 0, "rows": rows},
            description=without_surrogates(f"predict {' '.join(asked.sources)} --out {asked.out}"),
        )
        return str(job.id)


def predict(job: KnownJob, **arguments: Any) -> dict[str, Any]:
    """The job: `amn predict` through the queue; the result is its summary.

    Raises:
        JobRefused: An argument is not what it must be.
        FileRefused, RunStopped: As `predict_files`, or it was cancelled.
    """
    # Whoever waits for jobs needs none of these.
    from ops.predict.files import open_data, predict_by_queue

    check(arguments)
    service = ProducerSettings.from_environment(queue=arguments.pop("queue"))
    asked, note = PredictSettings(**arguments), Notes(job)
    # RQ forked this process for the job: what it does to its own process ends with it.
    summary = predict_by_queue(service, asked, open_data(asked), note.progress, lambda s, _: note.stall(s))
    note.save()
    return summary


def cancel(connection: redis.Redis, name: str) -> str:
    """Takes a job that waits off the queue, and asks one that runs to end; returns what happened.

    Raises:
        JobRefused: There is no such job, or it has ended.
    """
    job = KnownJob.found(name, connection)
    status = job.get_status(refresh=False) if job else None
    if job is None or status not in (JobStatus.QUEUED, JobStatus.STARTED):
        raise JobRefused(f"no job {name!r:.80} waits or runs" + (f": it is {job.status_word}" if job else ""))
    if status == JobStatus.QUEUED:
        job.origin = JOBS
        end_cancelled(job)
        return "cancelled"
    connection.hset(job.key, CANCELLED, "1")
    return "it ends within a second or two; what is done stays"


def work(settings: ProducerSettings, beat: Callable[[], None], *, burst: bool, log_level: str) -> None:
    """Runs jobs until SIGTERM or Ctrl-C; the job at hand is finished first. Calls `beat` as it gets on.

    The forking worker fits here: it loads only the client side, so a fork is cheap. A job whose process is
    killed is noticed by its parent, and begins again where it was.
    """
    queue = KnownQueue(JOBS, rq_connection(settings))
    worker = KnownWorker(queue, {_PREDICT: predict}, beat)
    worker.work(burst=burst, logging_level=log_level.upper())


def check(arguments: Mapping[str, Any]) -> None:
    """Checks the arguments of `predict`.

    Raises:
        JobRefused: One is missing, unknown, or not what it must be.
    """
    if arguments.keys() != _CHECKS.keys():
        raise JobRefused(f"{_PREDICT} takes {', '.join(_CHECKS)}; given were {reprlib.repr([*arguments])}")
    for name, (holds, rule) in _CHECKS.items():
        if not holds(arguments[name]):
            raise JobRefused(f"{_PREDICT}: {name} is {reprlib.repr(arguments[name])}; it must be {rule}")
    try:
        PredictSettings(**{name: value for name, value in arguments.items() if name != "queue"})
    except FileRefused as error:
        raise JobRefused(f"{_PREDICT}: {error}") from error


def _is_text(value: Any) -> bool:
    try:
        whole = isinstance(value, str) and len(value) <= _TEXT_MAX
        return whole and without_surrogates(value) == value and value.isprintable()
    except ValueError:
        return False


def _is_path(value: Any) -> bool:
    return _is_text(value) and Path(value).is_absolute() and ".." not in Path(value).parts


def _are(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and (len(value) <= _TEXTS_MAX and all(map(holds, value)))
    )


_PATH_RULE = "an absolute path without '..'"
_BY_NAME: dict[str, tuple[Callable[[Any], bool], str]] = {
    "sources": (_are(_is_path), f"a list of texts, each {_PATH_RULE}"),
    "out": (_is_path, _PATH_RULE),
    "carry": (_are(_is_text), "a list of names"),
    "queue": (
        lambda value: isinstance(value, str) and bool(_QUEUE.fullmatch(value)),
        f"a name, {_QUEUE.pattern}",
    ),
}
_BY_TYPE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "str": (_is_text, f"printable text of at most {_TEXT_MAX} characters"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "float": (lambda value: type(value) in (int, float), "a number"),
    "Priority": (PRIORITIES.__contains__, f"one of {', '.join(PRIORITIES)}"),
}
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{
        field.name: _BY_NAME.get(field.name) or _BY_TYPE[str(field.type)]
        for field in dataclasses.fields(PredictSettings)
    },
    "queue": _BY_NAME["queue"],
}


def listed(connection: redis.Redis, most: int = LISTED_MAX) -> list[dict[str, Any]]:
    """All jobs that RQ still knows, newest first; of what is no job of ours, what can be said.

    Args:
        most: No more than so many are asked for in each state.
    """
    queue = KnownQueue(JOBS, connection)
    with connection.pipeline(transaction=False) as pipe:
        pipe.lrange(queue.key, 0, most - 1)
        pipe.lrange(queue.intermediate_queue.key, 0, most - 1)
        cancelled = CanceledJobRegistry(JOBS, connection, job_class=KnownJob, serializer=queue.serializer)
        for registry in (
            queue.started_job_registry,
            queue.finished_job_registry,
            queue.failed_job_registry,
            cancelled,
        ):
            pipe.zrevrange(registry.key, 0, most - 1)
        entries = [text_of(one).partition(":")[0] for found in pipe.execute() for one in found]
    jobs = (KnownJob.found(name, connection) for name in dict.fromkeys(entries))
    rows = [_row(job, connection) for job in jobs if job is not None]
    return sorted(rows, key=lambda row: str(row["enqueued_at"]), reverse=True)[:LISTED_MAX]


def found(connection: redis.Redis, name: str) -> dict[str, Any]:
    """One job, as `listed` shows it.

    Raises:
        JobRefused: There is none.
    """
    job = KnownJob.found(name, connection)
    if job is None:
        raise JobRefused(f"there is no job {name!r:.80}; `amn jobs list` names them")
    return _row(job, connection)


def _row(job: KnownJob, connection: redis.Redis) -> dict[str, Any]:
    try:
        results: Any = connection.xrevrange(Result.get_key(job.id), count=1)  # type: ignore[no-untyped-call]
    except redis.ResponseError:
        results = []
    result = results[0][1] if results else {}
    failure = inflated(_decoded(result.get(b"exc_string"))).strip().splitlines()
    counts = {name: job.meta.get(name, 0) for name in ("done", "rows", "failed", "escalated", "stalled_s")}
    return {
        "id": job.id,
        "status": job.status_word,
        **{name: count if isinstance(count, int) else 0 for name, count in counts.items()},
        "description": job.description or "",
        "enqueued_at": (job.enqueued_at or job.created_at).isoformat(timespec="seconds"),
        "result": parsed(_decoded(result.get(b"return_value"))),
        "error": text_of(failure[-1]) if failure else "",
    }


def _decoded(stored: bytes | None) -> bytes:
    try:
        return b64decode(stored or b"")
    except ValueError:
        return b""
