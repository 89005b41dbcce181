"""Coarse jobs on RQ: a file is one job, and its rows go through the queue.

RQ costs a fork and about twenty round trips a job, which is nothing beside a file and much beside a
vector. Jobs are stored as JSON, and ops/known_jobs.py sees to it that nothing but `predict_file` runs. What
is left to whoever can write to the jobs' queue: have any .npy file that this user can read predicted, and
any .npy file written that this user can write.
"""

from __future__ import annotations

import os
import re
import reprlib
import time
from base64 import b64decode
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import redis
from rq.results import Result

from amn.files import check_output
from amn.output import without_surrogates
from ops.errors import FileRefused, JobRefused, JobsUnavailable
from ops.files import FileOptions, open_contexts, predict_rows
from ops.known_jobs import KnownJob, KnownQueue, KnownWorker, inflated, parsed, text_of
from ops.settings import jobs_possible
from producer import Producer
from producer.messages import LANES
from producer.settings import ProducerSettings
from producer.transport.connection import connect

#: Name of the RQ queue.
JOBS = "amn-jobs"
_PREDICT_FILE = "ops.jobs.predict_file"
_SUFFIX = ".npy"
#: Jobs that a listing shows at most.
_LISTED_MAX = 1_000
_META_EVERY_S = 1.0
#: An idle worker comes back from its blocking read well within this.
_WORKER_TTL_S = 60
_QUEUE = r"[A-Za-z0-9_.-]{1,64}"


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
            raise FileRefused(f"{path}: the files of a job have {_PATH_RULE}")
    rows = len(open_contexts(source))
    check_output(target, source)
    arguments = {"source": str(source), "target": str(target), "queue": settings.queue}
    with closing(rq_connection(settings)) as connection:
        job = KnownQueue(JOBS, connection).enqueue(
            _PREDICT_FILE,
            kwargs=arguments | {name: getattr(options, name) for name in _CHECKS if name not in arguments},
            meta={"done": 0, "rows": rows},
            description=without_surrogates(f"predict-file {source} {target}"),
        )
        return str(job.id)


def predict_file(job: KnownJob, **arguments: Any) -> dict[str, Any]:
    """The job: streams the file through the queue; the result is the summary of `amn predict`.

    Raises:
        JobRefused: An argument is not what it must be.
    """
    check(arguments)
    saved_at_s = 0.0

    def on_progress(done: int, rows: int) -> None:
        nonlocal saved_at_s
        if time.monotonic() - saved_at_s > _META_EVERY_S or done == rows:
            saved_at_s = time.monotonic()
            job.meta["done"] = done
            job.save_meta()  # type: ignore[no-untyped-call]

    source, target, queue = (arguments.pop(name) for name in ("source", "target", "queue"))
    with Producer(settings=ProducerSettings.from_environment(queue=queue)) as producer:
        options = FileOptions(**arguments)
        return predict_rows(Path(source), Path(target), producer, options, on_progress).to_json()


def work(settings: ProducerSettings, *, burst: bool, log_level: str) -> None:
    """Runs jobs until SIGTERM or Ctrl-C; the job at hand is finished first.

    The forking worker fits here: it loads only the client side, so a fork is cheap, and a job that
    is killed is noticed and marked as failed by its parent.
    """
    queue = KnownQueue(JOBS, rq_connection(settings))
    worker = KnownWorker(queue, {_PREDICT_FILE: predict_file}, _WORKER_TTL_S)
    worker.work(burst=burst, logging_level=log_level.upper())


def check(arguments: Mapping[str, Any]) -> None:
    """Checks the arguments of `predict_file`.

    Raises:
        JobRefused: One is missing, unknown, or not what it must be.
    """
    if arguments.keys() != _CHECKS.keys():
        raise JobRefused(
            f"{_PREDICT_FILE} takes {', '.join(_CHECKS)}; given were {reprlib.repr([*arguments])}"
        )
    for name, (kind, holds, rule) in _CHECKS.items():
        if not isinstance(value := arguments[name], kind) or not holds(value):
            raise JobRefused(f"{_PREDICT_FILE}: {name} is {reprlib.repr(value)}; it must be {rule}")


def _is_path(value: str) -> bool:
    """True for the absolute path of an .npy file, or of one that may be made."""
    try:
        path = Path(value)
        whole = path.is_absolute() and str(path) == value and ".." not in path.parts and len(value) <= 4096
        named = whole and path.suffix == _SUFFIX and without_surrogates(value).isprintable()
        return named and (not os.path.lexists(path) or path.is_file())
    except (ValueError, OSError):  # half a surrogate pair, a name that is too long
        return False


_PATH_RULE = f"an absolute path without '..' that ends in {_SUFFIX}, and no special file"
#: The type of each argument of `predict_file`, its test, and the rule in words.
_CHECKS: dict[str, tuple[type, Callable[[Any], object], str]] = {
    "source": (str, _is_path, _PATH_RULE),
    "target": (str, _is_path, _PATH_RULE),
    "queue": (str, re.compile(_QUEUE).fullmatch, f"a name, {_QUEUE}"),
    "lane": (str, LANES.__contains__, f"one of {', '.join(LANES)}"),
    "domain": (
        str,
        lambda text: len(text) <= 512 and text.isprintable(),
        "printable text of at most 512 characters",
    ),
    "normalize": (bool, lambda _: True, "true or false"),
    "fast": (bool, lambda _: True, "true or false"),
}


def listed(connection: redis.Redis) -> list[dict[str, Any]]:
    """Return the jobs that RQ still knows, newest first; fields that cannot be read are empty."""
    queue = KnownQueue(JOBS, connection)
    with connection.pipeline(transaction=False) as pipe:
        pipe.lrange(queue.key, 0, _LISTED_MAX)
        pipe.lrange(queue.intermediate_queue.key, 0, _LISTED_MAX)
        for registry in (queue.started_job_registry, queue.finished_job_registry, queue.failed_job_registry):
            pipe.zrevrange(registry.key, 0, _LISTED_MAX)
        entries = [text_of(one).partition(":")[0] for found in pipe.execute() for one in found]
    jobs = (KnownJob.found(name, connection) for name in dict.fromkeys(entries))
    rows = [_row(job, connection) for job in jobs if job is not None]
    return sorted(rows, key=lambda row: str(row["enqueued_at"]), reverse=True)[:_LISTED_MAX]


def _row(job: KnownJob, connection: redis.Redis) -> dict[str, Any]:
    result: dict[bytes, bytes] = {}
    with suppress(redis.ResponseError):
        found: Any = connection.xrevrange(Result.get_key(job.id), count=1)  # type: ignore[no-untyped-call]
        result = found[0][1] if found else {}
    failure = inflated(_decoded(result, b"exc_string")).strip().splitlines()
    done, rows = (count if isinstance(count := job.meta.get(name), int) else 0 for name in ("done", "rows"))
    return {
        "id": job.id,
        "status": str(job.get_status(refresh=False).value),
        "done": done,
        "rows": rows,
        "description": job.description or "",
        "enqueued_at": (job.enqueued_at or job.created_at).isoformat(timespec="seconds"),
        "result": parsed(_decoded(result, b"return_value")),
        "error": text_of(failure[-1]) if failure else "",
    }


def _decoded(result: Mapping[bytes, bytes], name: bytes) -> bytes:
    try:
        return b64decode(result.get(name, b""))
    except ValueError:
        return b""
