"""The workers: their presence, progress, clocks, models, and the answers to their reads."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import redis

from ops.errors import Unhealthy
from ops.health.results import FAILURE, WARNING, CheckResult, failure, ok, warning
from ops.health.server import ServerFacts
from ops.health.streams import StreamFacts
from producer.keys import Keys
from producer.messages import PRIORITIES
from producer.settings import ProducerSettings
from producer.transport.clock import time_ms
from producer.transport.connection import connect, driver_errors
from workers.engine.reads import READ_BYTES_MAX

#: A worker that holds entries and ends none of them for this long is stuck.
STUCK_MS = 15_000
#: The server's clock is asked for once a second, and half of the way there and back is the doubt.
CLOCK_MS_MAX = 1_000
#: The largest answer to one read: as much of each level.
ANSWER_BYTES_MAX = len(PRIORITIES) * READ_BYTES_MAX
_OUTPUT_LIMIT = "set `client-output-buffer-limit normal 0 0 0`, in the server's file too"
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
    kind: str = "?"
    pid: int = 0
    finished: int = 0
    seen_ms_ago: int = 0
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
        """Says whether it lives and does nothing."""
        return self.stuck_ms > STUCK_MS


def read(client: redis.Redis, keys: Keys, now_ms: float) -> list[WorkerFacts]:
    """Every worker that was seen within three leases.

    Args:
        now_ms: Server's clock.
    """
    found = []
    for key in client.scan_iter(match=keys.workers_prefix.replace("{", "\\{") + "*", count=1000):
        with client.pipeline(transaction=True) as pipe:
            pipe.hgetall(key)
            pipe.pttl(key)
            raw, left_ms = cast("tuple[dict[bytes, bytes], int]", pipe.execute())
        stored = {_text(name): _text(value) for name, value in raw.items()}
        # Empty when it expired just now. One that has longer to live than it was given is from before the
        # server's clock went back: who lives says so again each second.
        ghost = 0 < 3 * int(stored.get("lease_ms", 0)) < left_ms
        if stored and not ghost:
            found.append(_worker(_text(key).removeprefix(keys.workers_prefix), stored, now_ms))
    return sorted(found, key=lambda worker: (worker.kind, worker.name))


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "replace")


def _worker(name: str, stored: Mapping[str, str], now_ms: float) -> WorkerFacts:
    numbers = {one.name for one in fields(WorkerFacts) if one.type == "int"}
    known = {one.name for one in fields(WorkerFacts)} & stored.keys()
    seen_at_ms = int(stored.get("seen_at_ms", 0))
    values: dict[str, Any] = {one: int(stored[one]) if one in numbers else stored[one] for one in known}
    values |= {
        "name": name,
        "seen_ms_ago": int(max(now_ms - seen_at_ms, 0)),
        "stuck_ms": seen_at_ms - int(stored.get("progress_at_ms", seen_at_ms)),
    }
    return WorkerFacts(**values)


def folder_here(workers: list[WorkerFacts]) -> Path | None:
    """Returns the folder of models and banks of this host's workers; None when none says so."""
    host = socket.gethostname()
    return next((Path(one.artifacts) for one in workers if one.artifacts and one.host == host), None)


def alive_here(settings: ProducerSettings, kind: str) -> str:
    """The name of a worker of this kind on this host that lives and makes progress.

    Raises:
        Unhealthy: There is none.
        ServerUnavailable, AuthenticationFailed: The server cannot be asked.
    """
    host, client = socket.gethostname(), connect(settings, retries=0)
    try:
        with driver_errors(settings.url):
            seen = read(client, Keys(settings.queue), time_ms(client.time()))
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


def check(
    workers: list[WorkerFacts],
    streams: Mapping[str, StreamFacts],
    artifacts: Mapping[str, str],
    server: ServerFacts,
) -> list[CheckResult]:
    """One result a kind, and one for progress, clocks, models and reads."""
    present = [_present(workers, streams[stream].entries, kind) for kind, stream in _STREAMS.items()]
    return [*present, _progress(workers), _clocks(workers), _served(workers, artifacts),
            check_reads(server, workers)]  # fmt: skip


def _present(workers: list[WorkerFacts], waiting: int, kind: str) -> CheckResult:
    count = sum(worker.kind == kind for worker in workers)
    if count:
        return ok(f"{kind} workers", f"{count} alive")
    text = f"none alive ({waiting} waiting); start one: `amn worker {kind}`"
    return CheckResult(WARNING if kind == "shadow" else FAILURE, f"{kind} workers", text)


def _progress(workers: list[WorkerFacts]) -> CheckResult:
    stuck = ", ".join(f"{one.name} for {one.stuck_ms / 1000:.0f} s" for one in workers if one.stuck)
    if not stuck:
        return ok("progress", f"{sum(worker.finished for worker in workers):,} entries ended")
    text = f"alive, holding entries, and ending none: {stuck}; see their logs, then kill them"
    return failure("progress", text)


def _clocks(workers: list[WorkerFacts]) -> CheckResult:
    """Deadlines go by the server's clock, so that an offset spoils no request; it spoils logs."""
    off = ", ".join(
        f"{worker.name} by {worker.clock_offset_ms / 1000:+.1f} s"
        for worker in workers
        if abs(worker.clock_offset_ms) > CLOCK_MS_MAX
    )
    if not off:
        return ok("worker clocks", "within a second of the server's")
    return warning("worker clocks", f"not the server's: {off}; run NTP on those hosts")


def _served(workers: list[WorkerFacts], artifacts: Mapping[str, str]) -> CheckResult:
    """Compares with the links on this machine: a refused swap shows here."""
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
        return ok("models", ", ".join(models) or "nobody says what it serves")
    text = (
        f"{'; '.join(others)}; within {SWAP_MS // 1000} s of a promotion that is the swap, later the new one "
        "was refused: see the pool's log (swap_refused)"
    )
    return warning("models", text)


def check_reads(server: ServerFacts, workers: Sequence[WorkerFacts]) -> CheckResult:
    """Answers to reads that were lost on the way, with the cause where the server tells it."""
    narrowed = ", ".join(
        f"{worker.name} ({worker.reads_lost} lost, now {worker.reads_narrowed} at a time)"
        for worker in workers
        if worker.reads_narrowed
    )
    limit_bytes = server.output_limit_bytes
    closes = f"the server closes connections with more than {limit_bytes or 0:,} bytes waiting"
    if not narrowed:
        if not limit_bytes or limit_bytes >= ANSWER_BYTES_MAX:
            return ok("reads", "answers come through")
        text = f"{closes}; a worker's read takes up to {ANSWER_BYTES_MAX:,}, and goes on in small steps"
        return warning("reads", f"{text}: {_OUTPUT_LIMIT}")
    if limit_bytes:
        cause = f"{closes}, {server.output_cuts} so far: {_OUTPUT_LIMIT}"
    elif limit_bytes is None and server.output_cuts:
        cause = f"the server closed {server.output_cuts} connections over its output limit: {_OUTPUT_LIMIT}"
    else:
        cause = "the way between them cuts large answers: look at its MTU, proxies and time limits"
    return failure("reads", f"answers to reads are lost on the way to {narrowed}; {cause}")
