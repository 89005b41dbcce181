"""The processes beside the workers (judge, sender, jobs worker), and errors that ended one lately."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis

from ops.health.results import CheckResult, failure, ok, warning
from ops.health.workers import WorkerFacts
from producer.keys import Keys

#: The judge evaluates and the sender looks once a minute.
SILENT_MS = 180_000
#: RQ's own keys; a worker's hash expires when it does not beat.
_JOBS_WORKERS, _JOBS = "rq:workers:amn-jobs", "rq:queue:amn-jobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """The error that ended a process.

    Attributes:
        kind: Kind of worker, or "judge", "sender", "jobs worker".
        ms_ago: By the server's clock.
    """

    kind: str
    host: str
    ms_ago: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BesideFacts:
    """Traces of these processes on the server.

    Attributes:
        judged_ms_ago, looked_ms_ago: Since judge and sender last did; None for never.
        failures: Newest first.
    """

    judged_ms_ago: int | None = None
    looked_ms_ago: int | None = None
    jobs_workers: int = 0
    jobs_waiting: int = 0
    failures: tuple[Crash, ...] = ()


def _looked_key(keys: Keys) -> str:
    return keys.alerts_prefix + "looked_ms"


def read(client: redis.Redis, keys: Keys, now_ms: int, *, jobs: bool) -> BesideFacts:
    """Reads the traces; those of jobs only where RQ can use the server."""
    judged = cast("bytes | None", client.hget(keys.drift_prefix + "judge", "evaluated_at_ms"))
    looked = cast("bytes | None", client.get(_looked_key(keys)))
    members = cast("set[bytes]", client.smembers(_JOBS_WORKERS)) if jobs else set()
    noted = [json.loads(text) for text in cast("list[bytes]", client.lrange(keys.failures, 0, -1))]
    return BesideFacts(
        judged_ms_ago=_ago(judged, now_ms),
        looked_ms_ago=_ago(looked, now_ms),
        jobs_workers=sum(bool(client.exists(name)) for name in members),
        jobs_waiting=cast(Any, client.llen(_JOBS)) if jobs else 0,
        failures=tuple(
            Crash(ms_ago=max(now_ms - one["at_ms"], 0), **{n: one[n] for n in ("kind", "host", "text")})
            for one in noted
        ),
    )


def forget_sender(client: redis.Redis, keys: Keys) -> str:
    """Takes note that the sender of alerts was removed on purpose, so that its silence is no failure."""
    client.delete(_looked_key(keys))
    return "the sender of alerts was removed on purpose: it is not missed until one runs again"


def _ago(stored: bytes | None, now_ms: int) -> int | None:
    return max(now_ms - int(stored), 0) if stored and int(stored) else None


def check(found: BesideFacts, workers: Sequence[WorkerFacts], now_ms: int) -> list[CheckResult]:
    """One result for the judge, the sender, the jobs, and what ended with an error."""
    return [_judge(found.judged_ms_ago), _sender(found.looked_ms_ago), _jobs(found),
            _failures(found, workers, now_ms)]  # fmt: skip


def _judge(ms_ago: int | None) -> CheckResult:
    if ms_ago is None:
        text = "none has ever judged here: nothing is told of an outage; start one: `amn drift judge`"
        return warning("judge", text)
    if ms_ago <= SILENT_MS:
        return ok("judge", f"judged {ms_ago // 1000} s ago")
    return failure(
        "judge", f"it last judged {ms_ago // 1000} s ago; start one: `amn drift judge` or `amn up`"
    )


def _sender(ms_ago: int | None) -> CheckResult:
    if ms_ago is None:
        return ok("sender", "none has run here: alerts are kept, and nobody is told")
    if ms_ago <= SILENT_MS:
        return ok("sender", f"looked {ms_ago // 1000} s ago")
    return failure(
        "sender",
        f"it last looked {ms_ago // 1000} s ago; start one: `amn alerts run`; or, if it was removed on "
        "purpose, say so once: `amn doctor --forget-sender`",
    )


def _jobs(found: BesideFacts) -> CheckResult:
    if found.jobs_workers or not found.jobs_waiting:
        return ok("jobs", f"{found.jobs_workers} workers alive, {found.jobs_waiting} jobs waiting")
    text = f"{found.jobs_waiting} jobs wait, and no worker is there for them; start one: `amn jobs worker`"
    return failure("jobs", text)


def _failures(found: BesideFacts, workers: Sequence[WorkerFacts], now_ms: int) -> CheckResult:
    """Errors that nobody has come after: the newest of each kind on each host."""
    newest = {(one.kind, one.host): one for one in reversed(found.failures)}
    left = [one for one in newest.values() if not _came_back(one, found, workers, now_ms)]
    if not left:
        return ok("failures", "no process of the last hour ended with an error and is missing")
    texts = (f"{one.kind} on {one.host}, {one.ms_ago // 1000} s ago: {one.text}" for one in left)
    return failure("failures", "ended with an error, and did not come back: " + "; ".join(texts))


def _came_back(failed: Crash, found: BesideFacts, workers: Sequence[WorkerFacts], now_ms: int) -> bool:
    beside = {"judge": found.judged_ms_ago, "sender": found.looked_ms_ago}
    if failed.kind in beside:
        heard_ms_ago = beside[failed.kind]
        return heard_ms_ago is not None and heard_ms_ago < min(failed.ms_ago, SILENT_MS)
    if failed.kind == "jobs worker":
        return found.jobs_workers > 0
    return any(
        (worker.kind, worker.host) == (failed.kind, failed.host)
        and now_ms - worker.started_at_ms < failed.ms_ago
        for worker in workers
    )
