"""The doctor's checks of processes: the workers, what runs beside them, and what ended with an error."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

import redis

from ops.clock import server_now_ms
from ops.errors import Unhealthy
from ops.health.beside import SILENT_MS, BesideFacts, Crash
from ops.health.beside import read as read_beside
from ops.health.report import FAILURE, OK, WARNING, Facts, Verdict
from ops.health.server import ServerFacts
from ops.health.streams import SERVED
from ops.health.workers import WorkerFacts
from ops.health.workers import read as read_workers
from producer.keys import Keys
from producer.messages import PRIORITIES
from workers.engine.sizes import READ_BYTES_MAX

#: The server's clock is asked for once a second, and half of the way there and back is the doubt.
CLOCK_MS_MAX = 1_000
#: The largest answer to one read: as much of each level.
ANSWER_BYTES_MAX = len(PRIORITIES) * READ_BYTES_MAX
_OUTPUT_LIMIT = "set `client-output-buffer-limit normal 0 0 0`, in the server's file too"
#: A swap takes some seconds a worker; later, the workers refuse what the links name.
_SWAP_S = 60
#: What is said of processes that are missing, before their names.
MISSING = "ended with an error or fell silent, and did not come back: "


def present(facts: Facts, kind: str) -> Verdict:
    """A kind of worker without which entries of its streams wait."""
    count = sum(worker.kind == kind for worker in facts.workers)
    if count:
        return OK, f"{count} alive"
    waiting = sum(one.entries for name, one in facts.streams.items() if name in SERVED[kind])
    text = f"none alive ({waiting} waiting); start one: `amn worker {kind}`"
    return WARNING if kind == "shadow" else FAILURE, text


def progress(workers: Sequence[WorkerFacts]) -> Verdict:
    """Workers that live and end nothing, or say nothing."""
    silent = ", ".join(f"{one.name} for {one.seen_ms_ago / 1000:.0f} s" for one in workers if one.silent)
    stuck = ", ".join(
        f"{one.name} for {one.stuck_ms / 1000:.0f} s" for one in workers if one.stuck and not one.silent
    )
    if not (silent or stuck):
        return OK, f"{sum(worker.finished for worker in workers):,} entries ended"
    stuck = stuck and f"alive, holding entries, and ending none: {stuck}; see their logs, then kill them"
    silent = silent and f"not heard: {silent}; stopped, killed, or hanging in native code"
    return FAILURE, "; ".join(filter(None, (stuck, silent)))


def clocks(workers: Sequence[WorkerFacts]) -> Verdict:
    """Deadlines go by the server's clock, so that an offset spoils no request; it spoils logs."""
    off = ", ".join(
        f"{worker.name} by {worker.clock_offset_ms / 1000:+.1f} s"
        for worker in workers
        if abs(worker.clock_offset_ms) > CLOCK_MS_MAX
    )
    if not off:
        return OK, "within a second of the server's"
    return WARNING, f"not the server's: {off}; run NTP on those hosts"


def served(workers: Sequence[WorkerFacts], artifacts: Mapping[str, str]) -> Verdict:
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
        return OK, ", ".join(models) or "nobody says what it serves"
    return WARNING, (
        f"{'; '.join(others)}; within {_SWAP_S} s of a promotion that is the swap, later the new one "
        "was refused: see the pool's log (swap_refused)"
    )


def reads(server: ServerFacts, workers: Sequence[WorkerFacts]) -> Verdict:
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
            return OK, "answers come through"
        text = f"{closes}; a worker's read takes up to {ANSWER_BYTES_MAX:,}, and goes on in small steps"
        return WARNING, f"{text}: {_OUTPUT_LIMIT}"
    if limit_bytes:
        cause = f"{closes}, {server.output_cuts} so far: {_OUTPUT_LIMIT}"
    elif limit_bytes is None and server.output_cuts:
        cause = f"the server closed {server.output_cuts} connections over its output limit: {_OUTPUT_LIMIT}"
    else:
        cause = "the way between them cuts large answers: look at its MTU, proxies and time limits"
    return FAILURE, f"answers to reads are lost on the way to {narrowed}; {cause}"


def judge(ms_ago: int | None) -> Verdict:
    """The time since the judge last evaluated."""
    if ms_ago is None:
        return WARNING, (
            "none has ever judged here: nothing is told of an outage; start one: `amn drift judge`"
        )
    if ms_ago <= SILENT_MS:
        return OK, f"judged {ms_ago // 1000} s ago"
    return FAILURE, f"it last judged {ms_ago // 1000} s ago; start one: `amn drift judge` or `amn up`"


def sender(ms_ago: int | None) -> Verdict:
    """The time since the sender of alerts last looked."""
    if ms_ago is None:
        return OK, "none has run here: alerts are kept, and nobody is told"
    if ms_ago <= SILENT_MS:
        return OK, f"looked {ms_ago // 1000} s ago"
    return FAILURE, (
        f"it last looked {ms_ago // 1000} s ago; start one: `amn alerts run`; or, if it was removed on "
        "purpose, say so once: `amn doctor --forget-sender`"
    )


def jobs(found: BesideFacts) -> Verdict:
    """Jobs that wait, and workers for them."""
    if found.jobs_workers or not found.jobs_waiting:
        return OK, f"{found.jobs_workers} workers alive, {found.jobs_waiting} jobs waiting"
    text = f"{found.jobs_waiting} jobs wait, and no worker is there for them; start one: `amn jobs worker`"
    return FAILURE, text


def failures(facts: Facts) -> Verdict:
    """Errors that nobody has come after: the newest of each kind on each host."""
    if not (left := missing(facts.beside, facts.workers, facts.now_ms)):
        return OK, "no process of the last hour ended with an error or fell silent, and is missing"
    texts = (f"{one.kind} on {one.host}, {one.ms_ago // 1000} s ago: {one.text}" for one in left)
    return FAILURE, MISSING + "; ".join(texts)


def missing(found: BesideFacts, workers: Sequence[WorkerFacts], now_ms: int) -> list[Crash]:
    """The newest error or silence of each kind on each host that nobody has come after."""
    newest = {(one.kind, one.host): one for one in reversed(found.failures)}
    return [one for one in newest.values() if not _came_back(one, found, workers, now_ms)]


def _came_back(failed: Crash, found: BesideFacts, workers: Sequence[WorkerFacts], now_ms: int) -> bool:
    looked = {"judge": found.judged_ms_ago, "sender": found.looked_ms_ago}
    if failed.kind in looked:
        heard_ms_ago = looked[failed.kind]
        return heard_ms_ago is not None and heard_ms_ago < min(failed.ms_ago, SILENT_MS)
    if failed.kind == "jobs worker":
        return found.jobs_workers > 0
    return any(
        (worker.kind, worker.host) == (failed.kind, failed.host)
        and now_ms - worker.started_at_ms < failed.ms_ago
        for worker in workers
    )


def alive(client: redis.Redis, keys: Keys, name: str) -> str:
    """A name of what lives: a worker of a kind on this host; or a judge, a sender or a jobs worker anywhere.

    Raises:
        Unhealthy: There is none, or the worker makes no progress.
    """
    now_ms, host = server_now_ms(client), socket.gethostname()
    if name in SERVED:
        seen = [one for one in read_workers(client, keys, now_ms) if (one.kind, one.host) == (name, host)]
        if well := next((one.name for one in seen if not one.stuck), ""):
            return well
        if not seen:
            raise Unhealthy(f"no {name} worker of host {host} was seen lately on queue {keys.queue}")
        text = f"lives, and has ended nothing of what it holds for {seen[0].stuck_ms / 1000:.0f} s"
        raise Unhealthy(f"{seen[0].name} {text}")
    found = read_beside(client, keys, now_ms, jobs=name == "jobs")
    ages_ms = {"judge": found.judged_ms_ago, "sender": found.looked_ms_ago}
    age_ms = ages_ms.get(name, 0 if found.jobs_workers else None)
    if age_ms is None or age_ms > SILENT_MS:
        since = "has given a sign yet" if age_ms is None else f"has given a sign for {age_ms / 1000:.0f} s"
        raise Unhealthy(f"no {name} of queue {keys.queue} {since}")
    return name
