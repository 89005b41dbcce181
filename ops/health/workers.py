"""The workers: who is there, whether it makes progress, and what it serves."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import redis

from ops.errors import Unhealthy
from ops.health.findings import FAILURE, OK, WARNING, Finding
from ops.health.streams import StreamFacts
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.clock import time_ms
from producer.transport.connection import connect, driver_errors

#: A worker that holds entries and ends none of them for this long is stuck.
STUCK_MS = 15_000
#: The server's clock is asked for once a second, and half of the way there and back is the doubt.
CLOCK_MS_MAX = 1_000
#: A swap takes some seconds a worker; later, the workers refuse what the links name.
SWAP_MS = 60_000
_STREAMS = {"amn": "requests", "fallback": "fallback", "shadow": "shadow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """One worker's presence.

    Attributes:
        finished: Entries that it ended.
        seen_ms_ago: Since it last said so.
        stuck_ms: For how long it has held entries without ending one, by its own clock.
        host: Whole name of its host.
        started_at_ms: When it was ready; by the server's clock.
        clock_offset_ms: How far the clock of its host is ahead of the server's.
        reads_lost: Reads of its whose answers never came.
        reads_narrowed: To how many entries it has narrowed its reads since; 0 for not much.
        model, bank: What it serves.
        artifacts: Folder on its host that these come from.
    """

    name: str
    kind: str
    pid: int
    finished: int
    seen_ms_ago: int
    stuck_ms: int = 0
    host: str = ""
    started_at_ms: int = 0
    clock_offset_ms: int = 0
    reads_lost: int = 0
    reads_narrowed: int = 0
    model: str = ""
    bank: str = ""
    artifacts: str = ""

    @property
    def stuck(self) -> bool:
        """Whether it lives and does nothing."""
        return self.stuck_ms > STUCK_MS


def look(client: redis.Redis, keys: Keys, now_ms: float) -> list[WorkerFacts]:
    """Every worker that was seen within three leases.

    Args:
        now_ms: Server's clock.
    """
    found = []
    for key in client.scan_iter(match=keys.workers_prefix.replace("{", "\\{") + "*", count=1000):
        with client.pipeline(transaction=True) as pipe:
            pipe.hgetall(key)
            pipe.pttl(key)
            fields, left_ms = cast("tuple[dict[bytes, bytes], int]", pipe.execute())
        stored = {
            name.decode("utf-8", "replace"): value.decode("utf-8", "replace")
            for name, value in fields.items()
        }
        # Empty when it expired just now. One that has longer to live than it was given is from before the
        # server's clock went back: who lives says so again each second.
        ghost = 0 < 3 * int(stored.get("lease_ms", 0)) < left_ms
        if stored and not ghost:
            found.append(_worker(_text(key).removeprefix(keys.workers_prefix), stored, now_ms))
    return sorted(found, key=lambda worker: (worker.kind, worker.name))


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "replace")


def folder_here(workers: list[WorkerFacts]) -> Path | None:
    """Where the workers of this host read models and banks; None when none says so."""
    host = socket.gethostname()
    return next((Path(one.artifacts) for one in workers if one.artifacts and one.host == host), None)


def _worker(name: str, stored: Mapping[str, str], now_ms: float) -> WorkerFacts:
    seen_at_ms = int(stored.get("seen_at_ms", 0))
    return WorkerFacts(
        name=name,
        kind=stored.get("kind", "?"),
        pid=int(stored.get("pid", 0)),
        finished=int(stored.get("finished", 0)),
        seen_ms_ago=int(max(now_ms - seen_at_ms, 0)),
        stuck_ms=seen_at_ms - int(stored.get("progress_at_ms", seen_at_ms)),
        host=stored.get("host", ""),
        started_at_ms=int(stored.get("started_at_ms", 0)),
        clock_offset_ms=int(stored.get("clock_offset_ms", 0)),
        reads_lost=int(stored.get("reads_lost", 0)),
        reads_narrowed=int(stored.get("reads_narrowed", 0)),
        model=stored.get("model", ""),
        bank=stored.get("bank", ""),
        artifacts=stored.get("artifacts", ""),
    )


def alive_here(settings: ProducerSettings, kind: str) -> str:
    """The name of a worker of this kind on this host that lives and makes progress.

    Raises:
        Unhealthy: There is none.
        ServerUnavailable, AuthenticationFailed: The server cannot be asked.
    """
    host, client = socket.gethostname(), connect(settings, retries=0)
    try:
        with driver_errors(settings.url):
            seen = look(client, Keys(settings.queue), time_ms(client.time()))
    finally:
        client.close()
    found = [worker for worker in seen if (worker.kind, worker.host) == (kind, host)]
    for worker in found:
        if not worker.stuck:
            return worker.name
    if found:
        name, for_s = found[0].name, found[0].stuck_ms / 1000
        raise Unhealthy(f"{name} lives, and has ended nothing of what it holds for {for_s:.0f} s")
    raise Unhealthy(f"no {kind} worker of host {host} was seen lately on queue {settings.queue}")


def judge(
    workers: list[WorkerFacts], streams: Mapping[str, StreamFacts], artifacts: Mapping[str, str]
) -> list[Finding]:
    """One finding per kind, one for progress, one for their clocks, one for what is served."""
    findings = [_present(workers, streams, kind, stream) for kind, stream in _STREAMS.items()]
    return [*findings, _progress(workers), _clocks(workers), _served(workers, artifacts)]


def _present(
    workers: list[WorkerFacts], streams: Mapping[str, StreamFacts], kind: str, stream: str
) -> Finding:
    count = sum(worker.kind == kind for worker in workers)
    if count:
        return Finding(OK, f"{kind} workers", f"{count} alive")
    level = WARNING if kind == "shadow" else FAILURE
    waiting = streams[stream].entries
    return Finding(
        level, f"{kind} workers", f"none alive ({waiting} waiting); start one: `amn worker {kind}`"
    )


def _progress(workers: list[WorkerFacts]) -> Finding:
    stuck = [worker for worker in workers if worker.stuck]
    if not stuck:
        return Finding(OK, "progress", f"{sum(worker.finished for worker in workers):,} entries ended")
    names = ", ".join(f"{worker.name} for {worker.stuck_ms / 1000:.0f} s" for worker in stuck)
    text = f"alive, holding entries, and ending none: {names}; see their logs, then kill them"
    return Finding(FAILURE, "progress", text)


def _clocks(workers: list[WorkerFacts]) -> Finding:
    """Deadlines go by the server's clock, so that an offset spoils no request; it spoils logs."""
    off = [worker for worker in workers if abs(worker.clock_offset_ms) > CLOCK_MS_MAX]
    if not off:
        return Finding(OK, "worker clocks", "within a second of the server's")
    names = ", ".join(f"{worker.name} by {worker.clock_offset_ms / 1000:+.1f} s" for worker in off)
    return Finding(WARNING, "worker clocks", f"not the server's: {names}; run NTP on those hosts")


def _served(workers: list[WorkerFacts], artifacts: Mapping[str, str]) -> Finding:
    """Whether workers serve what the links on this machine name: a refused swap shows here."""
    # A fallback worker serves the first or the second place of the chain.
    roles = {"amn": ("model",), "fallback": ("fallback", "secondary")}
    wanted = {
        kind: [artifacts[name] for name in names if "@" in artifacts.get(name, "")]
        for kind, names in roles.items()
    }
    others = [
        f"{worker.name} serves {worker.model}, the link names {' or '.join(wanted[worker.kind])}"
        for worker in workers
        if worker.model and wanted.get(worker.kind) and worker.model not in wanted[worker.kind]
    ]
    if not others:
        models = sorted({worker.model for worker in workers if worker.model})
        return Finding(OK, "models", ", ".join(models) or "nobody says what it serves")
    text = (
        f"{'; '.join(others)}; within {SWAP_MS // 1000} s of a promotion that is the swap, later the new one "
        "was refused: see the pool's log (swap_refused)"
    )
    return Finding(WARNING, "models", text)
