"""RQ with one door: a job runs one of a few functions of ours, with checked arguments, whatever is stored.

RQ imports what a job names: its function, callbacks, a method of an object. It calls addresses, puts other
jobs on queues, waits and ends at a word from the server. Here the stored fields of a job are taken one by
one, those that say what to do are left where they are, and its function is looked up among those that its
worker was given.
"""

from __future__ import annotations

import json
import re
import reprlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import redis
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from rq.utils import now, utcparse
from rq.worker import BaseWorker
from rq.worker_registration import clean_worker_registry

from ops.errors import JobRefused

#: Limit for each thing that a job stores: function and arguments, notes, the text of its failure.
_BYTES_MAX = 64 * 1024
_TEXT_MAX = 300
_KEPT_S, _TIMEOUT_S = 7 * 24 * 3600, 24 * 3600
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

#: A test of an argument, and the rule in words.
Check = tuple[Callable[[Any], bool], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function that a job may call.

    Attributes:
        run: Called with exactly the named arguments.    arguments: Their checks, by name.
        timeout_s: For one run.    result_s, failure_s: How long what came of it is kept.
    """

    run: Callable[..., Any]
    arguments: Mapping[str, Check]
    timeout_s: int = _TIMEOUT_S
    result_s: int = _KEPT_S
    failure_s: int = _KEPT_S


class KnownJob(Job):
    """A job of which only what is known here is read. Without `admit` it refuses to run."""

    _function: Function | None = None
    _refusal = "it did not come by a worker's own queue"

    def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
        """Takes the stored fields. Nothing in them raises, and what is not named here has no effect."""
        self.data = inflated(raw_data.get(b"data", b""))
        self.origin = text_of(raw_data.get(b"origin"))
        self.description = text_of(raw_data.get(b"description"))
        self.worker_name = text_of(raw_data.get(b"worker_name")) or None
        self.created_at = _time(raw_data.get(b"created_at")) or now()
        self.enqueued_at = _time(raw_data.get(b"enqueued_at"))
        self.started_at = _time(raw_data.get(b"started_at"))
        self.ended_at = _time(raw_data.get(b"ended_at"))
        self.last_heartbeat = _time(raw_data.get(b"last_heartbeat"))
        self.timeout, self.result_ttl, self.failure_ttl = _TIMEOUT_S, _KEPT_S, _KEPT_S
        meta = parsed(raw_data.get(b"meta", b""))
        self.meta = meta if isinstance(meta, dict) else {}
        status = text_of(raw_data.get(b"status"))
        self._status = JobStatus(status) if status in {*JobStatus} else JobStatus.CREATED

    def admit(self, functions: Mapping[str, Function], queue: str) -> None:
        """Finds its function and checks the arguments; what is wrong is raised when it runs, and so kept."""
        self.origin = queue
        words = parsed(self.data)
        try:
            function, arguments = _admitted(words, functions)
        except JobRefused as error:
            self._refusal, arguments = str(error), {}
        else:
            self._function = function
            self.timeout, self.result_ttl = function.timeout_s, function.result_s
            self.failure_ttl = function.failure_s
        name = words[0] if isinstance(words, list) and words else ""
        self._func_name, self._instance = text_of(str(name).encode("utf-8", "replace")), None
        self._args, self._kwargs = (), arguments

    @property
    def func(self) -> Callable[..., Any]:
        """The function that the job runs.

        Raises:
            JobRefused: Nothing.
        """
        if self._function is None:
            raise JobRefused(self._refusal)
        return self._function.run


class KnownQueue(Queue):
    """A queue whose entries may name anything, or nothing."""

    job_class = KnownJob

    def __init__(self, name: str, connection: redis.Redis, **_: Any) -> None:
        super().__init__(name, connection=connection, job_class=KnownJob, serializer=JSONSerializer)

    def move_dependents_to_ready(self, *_: Any, **__: Any) -> dict[str, list[str]]:
        """No job of ours waits for another."""
        return {}

    @classmethod
    def dequeue_any(  # type: ignore[override]
        cls, queues: Any, timeout: int | None, connection: redis.Redis, **_: Any
    ) -> tuple[Job, Queue] | None:
        """Dequeues as RQ does, but drops an entry that names no job; RQ's worker ends and meets it again."""
        [queue] = queues
        while (moved := cls.lmove(connection, queue.key, timeout)) is not None:
            try:
                name = moved[1].decode("ascii")
                return KnownJob.fetch(name, connection=connection, serializer=JSONSerializer), queue
            except (NoSuchJobError, ValueError, redis.ResponseError) as error:
                queue.log.warning("dropped an entry of %s that is no job: %.200r", queue.name, error)
                connection.lrem(IntermediateQueue.get_intermediate_queue_key(queue.key), 1, moved[1])
        return None


class KnownWorker(BaseWorker):
    """A mixin by which one of RQ's workers takes such jobs; it comes first among the bases."""

    queue_class = KnownQueue  # type: ignore[assignment]
    job_class = KnownJob

    def __init__(self, queue: KnownQueue, functions: Mapping[str, Function], ttl_s: int) -> None:
        super().__init__([queue], connection=queue.connection, serializer=JSONSerializer, worker_ttl=ttl_s)
        self._functions = functions

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Runs it, or ends it as failed with the reason."""
        assert isinstance(job, KnownJob)
        job.admit(self._functions, queue.name)
        super().execute_job(job, queue)

    def subscribe(self) -> None:
        """Takes no orders from the server: RQ's end jobs and workers."""

    def check_for_suspension(self, burst: bool) -> None:
        """No key on the server keeps this worker from its work."""

    def clean_registries(self) -> None:
        """Forgets what is old, and fails what was lost with its worker; one bad entry stops no other step."""
        for queue in self.queues:
            if not queue.acquire_maintenance_lock():
                continue
            steps = (
                queue.finished_job_registry.cleanup,
                queue.failed_job_registry.cleanup,
                queue.started_job_registry.cleanup,
                lambda queue=queue: clean_worker_registry(queue),
                lambda queue=queue: queue.intermediate_queue.cleanup(self, queue),
            )
            for step in steps:
                try:
                    step()
                except (redis.ConnectionError, redis.TimeoutError):
                    raise
                except Exception as error:
                    self.log.warning("%s has an entry that is none of ours: %.200r", queue.name, error)
            queue.release_maintenance_lock()  # type: ignore[no-untyped-call]
        self.last_cleaned_at = now()  # type: ignore[assignment]

    def clean_group_registries(self) -> None:
        """No job of ours is in a group."""


def _admitted(words: Any, functions: Mapping[str, Function]) -> tuple[Function, dict[str, Any]]:
    if not isinstance(words, list) or len(words) != 4:
        raise JobRefused("it does not hold a function and its arguments as JSON, as ours do")
    name, instance, positional, arguments = words
    function = functions.get(name) if isinstance(name, str) else None
    if function is None:
        known = ", ".join(functions)
        raise JobRefused(f"{reprlib.repr(name)} is none of our functions; a job here may run {known}")
    if instance is not None or positional != [] or not isinstance(arguments, dict):
        raise JobRefused(f"{name} is called with named arguments alone")
    if arguments.keys() != function.arguments.keys():
        raise JobRefused(
            f"{name} takes {', '.join(function.arguments)}; given were {reprlib.repr([*arguments])}"
        )
    for argument, (right, rule) in function.arguments.items():
        if not _holds(right, arguments[argument]):
            raise JobRefused(f"{name}: {argument} is {reprlib.repr(arguments[argument])}; it must be {rule}")
    return function, arguments


def _holds(right: Callable[[Any], bool], value: Any) -> bool:
    try:
        return right(value)
    except (ValueError, OSError):  # half a surrogate pair in a path, a name that is too long
        return False


def is_text(length_max: int) -> Check:
    """Text of at most so many characters that can be written and sent."""
    return (
        lambda value: isinstance(value, str) and len(value) <= length_max and value.isprintable(),
        f"printable text of at most {length_max} characters",
    )


def is_name() -> Check:
    """A name as queues and sinks have them."""
    return lambda value: isinstance(value, str) and bool(_NAME.fullmatch(value)), f"a name, {_NAME.pattern}"


IS_BOOL: Check = (lambda value: isinstance(value, bool), "true or false")


def inflated(stored: bytes) -> bytes:
    """Compressed or not, as RQ stores it; nothing where it is longer than any of ours."""
    try:
        data = zlib.decompressobj().decompress(stored, _BYTES_MAX + 1)
    except zlib.error:
        data = stored
    return data if len(data) <= _BYTES_MAX else b""


def parsed(stored: bytes) -> Any:
    """JSON of bounded length; None for anything else."""
    try:
        return json.loads(stored) if len(stored) <= _BYTES_MAX else None
    except (ValueError, RecursionError):
        return None


def text_of(stored: bytes | None) -> str:
    """For a log or a table: one short line."""
    text = (stored or b"")[: 4 * _TEXT_MAX].decode("utf-8", "replace")[:_TEXT_MAX]
    return "".join(one if one.isprintable() else "?" for one in text)


def _time(stored: bytes | None) -> datetime | None:
    try:
        return utcparse(stored.decode("ascii")) if stored else None
    except ValueError:
        return None
