"""What runs beside the workers (judge, sender, jobs worker), and what ended with an error lately."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis

from ops.health.findings import FAILURE, OK, WARNING, Finding
from ops.health.workers import WorkerFacts
from producer.keys import Keys

#: The judge evaluates and the sender looks once a minute.
SILENT_MS = 180_000
#: RQ's own keys; a worker's hash expires when it does not beat.
_JOBS_WORKERS, _JOBS = "rq:workers:amn-jobs", "rq:queue:amn-jobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The error that ended a process.

    Attributes:
        kind: Of worker, or "judge", "sender", "jobs worker".
        ms_ago: By the server's clock.
    """

    kind: str
    host: str
    ms_ago: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BesideFacts:
    """What is known of them.

    Attributes:
        judged_ms_ago, looked_ms_ago: Since judge and sender last did; None for never.
        jobs_workers, jobs_waiting: Of `amn jobs`.
        failures: Newest first.
    """

    judged_ms_ago: int | None = None
    looked_ms_ago: int | None = None
    jobs_workers: int = 0
    jobs_waiting: int = 0
    failures: tuple[Failure, ...] = ()


def look(client: redis.Redis, keys: Keys, now_ms: int, *, jobs: bool) -> BesideFacts:
    """What these processes left on the server.

    Args:
        jobs: Whether RQ can use this server.
    """
    judged = cast("bytes | None", client.hget(keys.drift_prefix + "judge", "evaluated_at_ms"))
    looked = cast("bytes | None", client.get(keys.alerts_prefix + "looked_ms"))
    members = cast("set[bytes]", client.smembers(_JOBS_WORKERS)) if jobs else set()
    noted = [json.loads(text) for text in cast("list[bytes]", client.lrange(keys.failures, 0, -1))]
    return BesideFacts(
        judged_ms_ago=_ago(judged, now_ms),
        looked_ms_ago=_ago(looked, now_ms),
        jobs_workers=sum(bool(client.exists(name)) for name in members),
        jobs_waiting=cast(Any, client.llen(_JOBS)) if jobs else 0,
        failures=tuple(
            Failure(
                kind=one["kind"], host=one["host"], ms_ago=max(now_ms - one["at_ms"], 0), text=one["text"]
            )
            for one in noted
        ),
    )


def _ago(stored: bytes | None, now_ms: int) -> int | None:
    return max(now_ms - int(stored), 0) if stored and int(stored) else None


def judge(found: BesideFacts, workers: Sequence[WorkerFacts], now_ms: int) -> list[Finding]:
    """One finding each."""
    judging = _heard("judge", found.judged_ms_ago, "judged", "`amn drift judge` or `amn up`")
    sending = _heard("sender", found.looked_ms_ago, "looked", "`amn alerts run`")
    if found.judged_ms_ago is None:
        text = "none has ever judged here: nothing is told of an outage; start one: `amn drift judge`"
        judging = Finding(WARNING, "judge", text)
    if found.looked_ms_ago is None:
        sending = Finding(OK, "sender", "none has run here: alerts are kept, and nobody is told")
    return [judging, sending, _jobs(found), _failures(found, workers, now_ms)]


def _heard(name: str, ms_ago: int | None, did: str, start: str) -> Finding:
    if ms_ago is not None and ms_ago <= SILENT_MS:
        return Finding(OK, name, f"{did} {ms_ago // 1000} s ago")
    return Finding(FAILURE, name, f"it last {did} {(ms_ago or 0) // 1000} s ago; start one: {start}")


def _jobs(found: BesideFacts) -> Finding:
    if found.jobs_workers or not found.jobs_waiting:
        return Finding(OK, "jobs", f"{found.jobs_workers} workers alive, {found.jobs_waiting} jobs waiting")
    text = f"{found.jobs_waiting} jobs wait, and no worker is there for them; start one: `amn jobs worker`"
    return Finding(FAILURE, "jobs", text)


def _failures(found: BesideFacts, workers: Sequence[WorkerFacts], now_ms: int) -> Finding:
    """Errors that nobody has come after: the newest of each kind on each host."""
    newest: dict[tuple[str, str], Failure] = {}
    for one in reversed(found.failures):
        newest[one.kind, one.host] = one
    left = [one for one in newest.values() if not _came_back(one, found, workers, now_ms)]
    if not left:
        return Finding(OK, "failures", "no process of the last hour ended with an error and is missing")
    texts = (f"{one.kind} on {one.host}, {one.ms_ago // 1000} s ago: {one.text}" for one in left)
    return Finding(FAILURE, "failures", "ended with an error, and did not come back: " + "; ".join(texts))


def _came_back(failed: Failure, found: BesideFacts, workers: Sequence[WorkerFacts], now_ms: int) -> bool:
    beside = {"judge": found.judged_ms_ago, "sender": found.looked_ms_ago}
    if failed.kind in beside:
        heard_ms_ago = beside[failed.kind]
        return heard_ms_ago is not None and heard_ms_ago < min(failed.ms_ago, SILENT_MS)
    if failed.kind == "jobs worker":
        return found.jobs_workers > 0
    place = (failed.kind, failed.host)
    return any((w.kind, w.host) == place and now_ms - w.started_at_ms < failed.ms_ago for w in workers)
