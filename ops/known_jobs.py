"""RQ with one door: a job runs one of a few functions of ours, whatever is stored.

RQ imports what a job names: its function, callbacks, a method of an object. It calls addresses, puts other
jobs on queues, waits and ends at a word from the server. Here the stored fields of a job are taken one by
one, those that say what to do are left where they are, and its function is looked up among those that its
worker was given.
"""

from __future__ import annotations

import json
import reprlib
import time
import zlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import redis
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job, JobStatus
from rq.registry import CanceledJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import now, utcparse
from rq.worker import Worker
from rq.worker_registration import clean_worker_registry

from ops.errors import JobRefused, RunStopped
from workers.pulse import silence_s_max

#: Limit for each thing that a job stores: function and arguments, notes, the text of its failure.
_BYTES_MAX = 64 * 1024
_TEXT_MAX = 300
#: So many times a job is begun again when its process died.
_BEGUN_MAX = 3
#: Jobs that a listing shows at most, and the field of one that asks it to end.
LISTED_MAX, CANCELLED = 1_000, "cancelled"
_META_EVERY_S = 1.0
KEPT_S, _TIMEOUT_S = 7 * 24 * 3600, 24 * 3600
#: Longest pause between two signs of a worker, idle, with a job, or without a server, in whole seconds.
BEAT_S_MAX = 10
#: A worker that has given no sign on the server for this, and a minute, is forgotten there.
_WORKER_TTL_S = 60


class KnownJob(Job):
    """A job that reads no stored field but those named here, and runs no function but its worker's.

    Attributes:
        functions: Functions that it may run, by name; each takes the job, and named arguments.
    """

    functions: Mapping[str, Callable[..., Any]] = {}
    _asked_to_end = False

    @classmethod
    def found(cls, name: str, connection: redis.Redis) -> KnownJob | None:
        """Return a stored job; None where nothing, or no job, has this name."""
        try:
            return cls.fetch(name, connection=connection, serializer=JSONSerializer)  # type: ignore[return-value]
        except (NoSuchJobError, ValueError, redis.ResponseError):
            return None

    @property
    def status_word(self) -> str:
        """RQ's word for its status, in our spelling.

        RQ fails a job that was cancelled while it ran, until its worker ends it as cancelled a moment later.
        """
        status = self.get_status(refresh=False)
        by_hand = status == JobStatus.CANCELED or (status == JobStatus.FAILED and self._asked_to_end)
        return "cancelled" if by_hand else str(status.value)

    def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
        """Takes the stored fields. Nothing in them raises, and what is not named here has no effect."""
        self.data = inflated(raw_data.get(b"data", b""))
        call = parsed(self.data)
        whole = isinstance(call, list) and len(call) == 4
        self._func_name, self._instance, self._args, self._kwargs = call if whole else ("", None, [], {})
        self.origin, self.description = (text_of(raw_data.get(name)) for name in (b"origin", b"description"))
        self.created_at = _time(raw_data.get(b"created_at")) or now()
        self.enqueued_at = _time(raw_data.get(b"enqueued_at"))
        self.timeout, self.result_ttl, self.failure_ttl = _TIMEOUT_S, KEPT_S, KEPT_S
        meta = parsed(raw_data.get(b"meta", b""))
        self.meta = meta if isinstance(meta, dict) else {}
        begun = self.meta.get("begun", 0)
        # Only a job whose process died is begun again: what ends by an error takes these back (`perform`).
        self.retries_left = max(_BEGUN_MAX - begun, 0) if isinstance(begun, int) else 0
        self._asked_to_end = CANCELLED.encode() in raw_data
        status = text_of(raw_data.get(b"status"))
        self._status = JobStatus(status) if status in {*JobStatus} else JobStatus.CREATED

    def perform(self) -> Any:
        """Runs its function.

        Raises:
            JobRefused: It names none of the functions, or calls it in another way.
        """
        name = self.func_name
        if not isinstance(name, str) or name not in self.functions:
            known = ", ".join(self.functions)
            raise JobRefused(f"{reprlib.repr(name)} is none of our functions; a job here may run {known}")
        if self.instance is not None or self.args != [] or not isinstance(self.kwargs, dict):
            raise JobRefused(f"{name} is called with named arguments alone")
        try:
            self._result = self.functions[name](self, **self.kwargs)
        except Exception:
            self.retries_left = 0
            raise
        return self._result


class Notes:
    """The progress that a job keeps in its `meta`, and whether somebody cancelled it."""

    def __init__(self, job: KnownJob) -> None:
        self._job, self._saved_at_s = job, 0.0

    def progress(self, progress: Any) -> None:
        """Keep how far it is."""
        self._job.meta |= {name: getattr(progress, name) for name in ("done", "rows", "escalated")}
        self._job.meta["failed"] = progress.faults
        self._job.meta["stalled_s"] = 0
        self._now_and_then()

    def stall(self, stalled_s: float) -> None:
        """Keep for how long no answer came."""
        self._job.meta["stalled_s"] = round(stalled_s)
        self._now_and_then()

    def _now_and_then(self) -> None:
        if time.monotonic() - self._saved_at_s > _META_EVERY_S:
            self.save()

    def save(self) -> None:
        """Save both.

        Raises:
            RunStopped: Somebody cancelled the job.
        """
        self._saved_at_s = time.monotonic()
        self._job.save_meta()  # type: ignore[no-untyped-call]
        if self._job.connection.hexists(self._job.key, CANCELLED):
            raise RunStopped("cancelled; what is done stays, and the same job goes on with it")


class KnownQueue(Queue):
    """A queue that drops entries which name no job."""

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
        """Dequeues as RQ does, but drops an entry that names no job, over which RQ's worker would end."""
        [queue] = queues
        while (moved := cls.lmove(connection, queue.key, timeout)) is not None:
            if job := KnownJob.found(moved[1].decode("utf-8", "replace"), connection):
                job.origin = queue.name
                return job, queue
            queue.log.warning("dropped an entry of %s that is no job: %.200r", queue.name, moved[1])
            connection.lrem(IntermediateQueue.get_intermediate_queue_key(queue.key), 1, moved[1])
        return None


class KnownWorker(Worker):
    """A worker that forks for each job, and runs a few functions only."""

    queue_class = KnownQueue  # type: ignore[assignment]
    job_class = KnownJob

    #: RQ's longest pause while the server is away, in seconds.
    max_connection_wait_time = float(BEAT_S_MAX)

    def __init__(
        self, queue: KnownQueue, functions: Mapping[str, Callable[..., Any]], beat: Callable[[], None]
    ) -> None:
        self._functions, self._beat = functions, beat
        super().__init__(
            [queue],
            connection=queue.connection,
            serializer=JSONSerializer,
            worker_ttl=_WORKER_TTL_S,
            job_monitoring_interval=self.dequeue_timeout,
        )

    @property
    def dequeue_timeout(self) -> int:
        """Seconds that an idle read waits, and that pass between two looks at a job."""
        return max(1, min(BEAT_S_MAX, int(silence_s_max() / 4)))

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Beats as RQ does, and for whoever looks after this process."""
        self._beat()
        super().heartbeat(timeout, pipeline)

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Runs it, or ends it as failed with the reason."""
        assert isinstance(job, KnownJob)
        job.functions = self._functions
        job.meta["begun"] = _BEGUN_MAX + 1 - (job.retries_left or 0)
        job.save_meta()  # type: ignore[no-untyped-call]
        super().execute_job(job, queue)

    def handle_job_failure(self, job: Job, queue: Queue, *arguments: Any, **named: Any) -> None:
        """Ends a job that failed, or that ended because somebody cancelled it."""
        super().handle_job_failure(job, queue, *arguments, **named)
        if self.connection.hexists(job.key, CANCELLED):
            end_cancelled(job)

    def subscribe(self) -> None:
        """Takes no orders from the server: RQ's end jobs and workers."""

    def check_for_suspension(self, burst: bool) -> None:
        """No key on the server keeps this worker from its work."""

    def clean_group_registries(self) -> None:
        """No job of ours is in a group."""

    def clean_registries(self) -> None:
        """Forgets what is old, and fails what was lost with its worker; one bad entry stops no other step."""
        [queue] = self.queues
        if queue.acquire_maintenance_lock():
            for step in (
                queue.finished_job_registry.cleanup,
                queue.failed_job_registry.cleanup,
                queue.started_job_registry.cleanup,
                lambda: clean_worker_registry(queue),
                lambda: queue.intermediate_queue.cleanup(self, queue),
            ):
                try:
                    step()
                except (redis.ConnectionError, redis.TimeoutError):
                    raise
                except Exception as error:
                    self.log.warning("%s has an entry that is none of ours: %.200r", queue.name, error)
            queue.release_maintenance_lock()  # type: ignore[no-untyped-call]
        self.last_cleaned_at = now()  # type: ignore[assignment]


def end_cancelled(job: Job) -> None:
    """Ends a job as cancelled. It expires, and its place in the list with it: RQ would keep both for ever."""
    job.cancel()
    job.connection.expire(job.key, KEPT_S)
    registry = CanceledJobRegistry(job.origin, job.connection, job_class=KnownJob)
    job.connection.zremrangebyrank(registry.key, 0, -LISTED_MAX - 1)


def inflated(stored: bytes) -> bytes:
    """Return stored bytes, decompressed where RQ compressed them; empty where they are too long."""
    try:
        data = zlib.decompressobj().decompress(stored, _BYTES_MAX + 1)
    except zlib.error:
        data = stored
    return data if len(data) <= _BYTES_MAX else b""


def parsed(stored: bytes) -> Any:
    """Return the value of bounded JSON; None for anything else."""
    try:
        return json.loads(stored) if len(stored) <= _BYTES_MAX else None
    except (ValueError, RecursionError):
        return None


def text_of(stored: bytes | None) -> str:
    """Return stored bytes as one short line of printable text."""
    text = (stored or b"")[: 4 * _TEXT_MAX].decode("utf-8", "replace")[:_TEXT_MAX]
    return "".join(one if one.isprintable() else "?" for one in text)


def _time(stored: bytes | None) -> datetime | None:
    try:
        return utcparse(stored.decode("ascii")) if stored else None
    except ValueError:
        return None
