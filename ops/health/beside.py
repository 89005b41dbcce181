"""The processes beside the workers (judge, sender, jobs worker), and errors that ended one lately."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

import redis

from producer.keys import Keys

#: The judge evaluates and the sender looks once a minute: one that has not for this long is not at work.
SILENT_MS = 180_000
#: RQ's own keys; a worker's hash expires when it does not beat.
_JOBS_WORKERS, _JOBS = "rq:workers:amn-jobs", "rq:queue:amn-jobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """The error that ended a process: a kind of worker, or "judge", "sender", "jobs worker"."""

    kind: str
    host: str
    ms_ago: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BesideFacts:
    """Traces of these processes on the server: when judge and sender last looked, jobs, newest crashes."""

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
    noted = [_crash(text, now_ms) for text in cast("list[bytes]", client.lrange(keys.failures, 0, -1))]
    return BesideFacts(
        judged_ms_ago=_ago(judged, now_ms),
        looked_ms_ago=_ago(looked, now_ms),
        jobs_workers=sum(bool(client.exists(name)) for name in members),
        jobs_waiting=cast(Any, client.llen(_JOBS)) if jobs else 0,
        failures=tuple(one for one in noted if one is not None),
    )


def _crash(stored: bytes, now_ms: int) -> Crash | None:
    try:
        one = json.loads(stored)
        texts = {name: str(one[name]) for name in ("kind", "host", "text")}
        return Crash(ms_ago=max(now_ms - int(one["at_ms"]), 0), **texts)
    except (ValueError, TypeError, KeyError):  # no record of ours
        return None


def forget_sender(client: redis.Redis, keys: Keys) -> str:
    """Takes note that the sender of alerts was removed on purpose, so that its silence is no failure."""
    client.delete(_looked_key(keys))
    return "the sender of alerts was removed on purpose: it is not missed until one runs again"


def _ago(stored: bytes | None, now_ms: int) -> int | None:
    return max(now_ms - int(stored), 0) if stored and int(stored) else None
