"""The doctor's checks: pure functions from facts to a level, and a text that says what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from ops.health import machine
from ops.health.letters import LETTERS_READ_MAX, RECENT_MS, LetterFacts
from ops.health.process_checks import clocks, failures, jobs, judge, present, progress, reads, sender, served
from ops.health.report import FAILURE, OK, WARNING, CheckResult, Facts, Verdict
from ops.health.server import MEMORY_FAILURE, MEMORY_WARNING, ServerFacts
from ops.health.streams import STALE_MS, StreamFacts
from producer.transport.library import LIBRARY

VERSION_MIN = (7, 0)
#: Workers and our clients go by the server's clock; other clients may not.
SKEW_MS_MAX = 1_000
#: By stream, how long its oldest entry may wait before it is a warning and a failure, ms. Bulk work waits by
#: design: at the level low, and, of a file, for a fallback. Shadow entries and truths always do.
_WAITS_MS: Mapping[str, tuple[float, float]] = {
    "requests:high": (10_000, 10_000),
    "requests": (10_000, 10_000),
    "requests:low": (3_600_000, math.inf),
    "fallback": (30_000, 120_000),
    "fallback:secondary": (30_000, 120_000),
}
#: So many dead letters within `RECENT_MS` are an incident and not an accident.
GROWTH_MAX = 20
#: From this share of the cap on, the oldest dead letters will soon be dropped unseen.
NEARLY_FULL = 0.9


def check(facts: Facts) -> list[CheckResult]:
    """The results of all checks, in the order in which they are shown."""
    server, found = facts.server, facts.beside
    verdicts: list[tuple[str, Verdict]] = [
        *_figures(server),
        ("clock", _clock(server)),
        *((f"{kind} workers", present(facts, kind)) for kind in ("amn", "fallback", "shadow")),
        ("progress", progress(facts.workers)),
        ("worker clocks", clocks(facts.workers)),
        ("models", served(facts.workers, facts.artifacts)),
        ("reads", reads(server, facts.workers)),
        *((f"{name} stream", _flow(name, stream)) for name, stream in facts.streams.items()),
        ("leases", _leases(facts.streams)),
        ("dead letters", _letters(facts.letters)),
        *(("keys", verdict) for verdict in _keys(facts.wrong)),
        ("judge", judge(found.judged_ms_ago)),
        ("sender", sender(found.looked_ms_ago)),
        ("jobs", jobs(found)),
        ("failures", failures(facts)),
        *_artifacts(facts.artifacts, facts.root),
        ("loops", _loops(facts.loops)),
        ("packages", _packages(facts.neighbours)),
    ]
    return [CheckResult(level, name, text) for name, (level, text) in verdicts]


def _figures(server: ServerFacts) -> list[tuple[str, Verdict]]:
    if not server.told:
        text = "the server tells this user nothing of its version, memory and files (INFO)"
        return [("figures", (WARNING, f"{text}; give it the role ops: `amn acl ops`"))]
    return [
        ("version", _version(server)),
        ("writes", _writes(server)),
        ("eviction", _eviction(server)),
        ("persistence", _persistence(server)),
        ("memory", _memory(server)),
        ("functions", _functions(server)),
    ]


def _version(server: ServerFacts) -> Verdict:
    said = f"{server.name} {server.version}"
    parts = server.compatible.split(".")
    if tuple(int(part) if part.isdigit() else 0 for part in parts[:2]) >= VERSION_MIN:
        return OK, said
    return FAILURE, f"{said} is older than 7.0, whose commands are used; upgrade the server"


def _writes(server: ServerFacts) -> Verdict:
    if server.replica:
        return (
            FAILURE,
            "this server is a replica, which takes no requests; ask its master, or through sentinels",
        )
    if server.replicas_missing:
        return FAILURE, "min-replicas-to-write, and no replica is there: nothing is taken; start its replicas"
    return OK, "taken"


def _eviction(server: ServerFacts) -> Verdict:
    policy = server.maxmemory_policy
    if policy == "noeviction":
        return OK, policy
    text = f"maxmemory-policy is {policy}: the server may drop accepted requests; set noeviction"
    return FAILURE if server.maxmemory_bytes else WARNING, text


def _persistence(server: ServerFacts) -> Verdict:
    if server.persistence_failed:
        return FAILURE, "the server could not write its append-only file or its snapshot; look at its disk"
    if server.append_only:
        return OK, "append-only file"
    return WARNING, "no append-only file: a restart of the server loses waiting requests; set appendonly yes"


def _memory(server: ServerFacts) -> Verdict:
    used, limit = server.used_memory_bytes, server.memory_limit_bytes
    if not limit:
        return OK, f"{used / 1024**2:,.0f} MiB, no limit known"
    share, whose = used / limit, "maxmemory" if server.maxmemory_bytes else "the machine's memory"
    text = f"{used / 1024**2:,.0f} MiB, {share:.0%} of {whose} ({limit / 1024**2:,.0f} MiB)"
    if share < MEMORY_WARNING:
        return OK, text
    level = FAILURE if share >= MEMORY_FAILURE else WARNING
    return level, f"{text}; raise it, add workers, or lower the queue's bytes_max"


def _functions(server: ServerFacts) -> Verdict:
    if server.functions is False:
        return WARNING, (
            f"the server's functions of {LIBRARY} are those of another version of this package: clients that "
            "call them go by its rules; an administrator loads these by `amn wire functions --load`"
        )
    return OK, "those of this version" if server.functions else "none loaded, or not shown to this user"


def _clock(server: ServerFacts) -> Verdict:
    if abs(server.skew_ms) <= SKEW_MS_MAX:
        return OK, f"{server.skew_ms:+.0f} ms from this host's"
    return WARNING, (
        f"the server's clock is {server.skew_ms:+.0f} ms from this host's: requests of a client that stamps "
        "its own clock expire by so much too early or too late; run NTP on both"
    )


def _flow(name: str, stream: StreamFacts) -> Verdict:
    age_ms = stream.oldest_age_ms or 0
    warning_ms, failure_ms = _WAITS_MS.get(name, (math.inf, math.inf))
    if age_ms <= warning_ms:
        return OK, f"{stream.entries} waiting, {stream.leased} of them leased"
    return FAILURE if age_ms > failure_ms else WARNING, (
        f"the oldest of {stream.entries} entries waits for {age_ms / 1000:.0f} s; add workers, see their logs"
    )


def _leases(streams: Mapping[str, StreamFacts]) -> Verdict:
    stale = ", ".join(f"{stream.stale} on {name}" for name, stream in streams.items() if stream.stale)
    if not stale:
        return OK, f"none older than {STALE_MS // 1000} s"
    return FAILURE, (
        f"not renewed for {STALE_MS // 1000} s, and nobody takes them over: {stale}; are workers reading?"
    )


def _letters(letters: LetterFacts) -> Verdict:
    """Any dead letter is a warning, and a growing number of them a failure."""
    if not letters.entries:
        return OK, "none"
    reasons = ", ".join(f"{count} {reason}" for reason, count in letters.reasons.items())
    level, text = WARNING, f"{letters.entries} ({reasons}); `amn dlq list` shows them"
    if letters.recent >= GROWTH_MAX:
        more = " or more" if letters.recent == LETTERS_READ_MAX else ""
        level, text = FAILURE, f"{letters.recent}{more} new in {RECENT_MS // 60_000} minutes, of {text}"
    if letters.entries >= NEARLY_FULL * letters.cap:
        text += f"; at {letters.cap} the oldest are dropped: requeue or purge"
    return level, text


def _keys(wrong: Mapping[str, str]) -> list[Verdict]:
    advice = "`amn doctor --repair` mends it, and loses nothing that waits"
    found = [(FAILURE, f"{key} {what}; {advice}") for key, what in wrong.items()]
    return found or [(OK, "types, ids and counts as they should be")]


def _artifacts(artifacts: Mapping[str, str], root: str) -> Iterator[tuple[str, Verdict]]:
    """Yields each artifact that is wrong, or one good result."""
    wrong = {name: text for name, text in artifacts.items() if text.startswith(machine.WRONG)}
    for name, text in wrong.items():
        if text.startswith(machine.MISSING):
            yield name, (WARNING, f"{text}; workers on this machine would not start")
        else:
            yield name, (FAILURE, f"{text}; workers on this machine refuse it: promote or roll back")
    if not artifacts:
        yield "artifacts", (OK, "no worker of this host, and no --artifacts: not looked at")
    elif not wrong:
        yield "artifacts", (OK, f"weights in {root} as their manifests say")


def _loops(why: str) -> Verdict:
    """A warning where NumPy stands in: it gives the same answers, and takes more time."""
    if not why:
        return OK, "compiled"
    text = machine.LOOPS.get(why, why)
    return WARNING, f"not in use, workers on this machine take more time: {text}"


def _packages(neighbours: Mapping[str, Sequence[str]]) -> Verdict:
    """Other projects use the names of our packages too; `amn.__main__` refuses what it finds of them."""
    if not neighbours:
        return OK, "no other distribution has packages of the same names"
    shared = ", ".join(f"{name} (also of {' and '.join(others)})" for name, others in neighbours.items())
    return WARNING, f"shared with other distributions: {shared}; keep amn-queue in an environment of its own"
