"""Everything that is wrong, in sentences for somebody new to the service; the verdict is the worst of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ops.alerts.settings import AlertSettings
from ops.health import FAILURE, OK, CheckResult, check
from ops.health.process_checks import MISSING
from ops.health.workers import STUCK_MS, WorkerFacts
from ops.page.look import Look
from ops.page.words import told
from producer.errors import AuthenticationFailed, ServerError

SEVERITIES = ("error", "warning", "notice")
#: A worker says each second that it lives; one that has not for so long was killed, stopped or cut off.
SILENT_MS = 2_500
#: Kinds that give way to all else on their machine: while it is busy, some seconds of silence say nothing.
_YIELDING = ("fallback", "shadow")
#: A worker that died is told for so long, though its pool has started another.
DEATH_TOLD_MS = 30_000
_FOLLOWS_MS = 10_000
#: By the doctor's check: a sentence before its text, and a heading of the runbook.
_CHECKS: Mapping[str, tuple[str, str]] = {
    "amn workers": ("No AMN worker lives, so that nothing is answered", "no_worker"),
    "fallback workers": ("No fallback worker lives, so that escalated requests wait", "no_worker"),
    "shadow workers": ("No shadow worker lives, so that quality is not measured", "no_worker"),
    "progress": ("A worker is stuck, stopped or was killed", "no_worker"),
    "worker clocks": ("The clock of a worker's host is wrong", ""),
    "reads": ("Workers lose answers of the server on the way", ""),
    "leases": ("Requests are leased to workers that are gone, and nobody takes them over", "no_worker"),
    "dead letters": ("Some requests could not be answered and are kept as dead letters", "dead_letters"),
    "judge": ("The drift judge is not at work, so that no alert is raised", "judge_dead"),
    "sender": ("The sender of alerts is not at work, so that nobody is told", "sender_dead"),
    "jobs": ("Jobs wait, and no worker is there for them", ""),
    "failures": ("A process of the service is missing", "crash_loop"),
    "figures": ("This page does not know how the server is", ""),
    "writes": ("The server takes no requests", ""),
    "memory": ("The server's memory is nearly full", "server_memory"),
    "persistence": ("The server does not keep what it holds on disk", "persistence_failed"),
    "eviction": ("The server may drop requests when its memory is full", ""),
    "version": ("The server is too old", ""),
    "clock": ("The server's clock differs from this machine's", ""),
}
_SEVERITY = {FAILURE: "error", "page": "error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Something that is not as it should be.

    Attributes:
        check: Stable name.    sentence: What is wrong.    remedy: What to type or do; "" when nothing.
        since_ms: By the server's clock; None when it was so before this page looked.
    """

    severity: str
    check: str
    sentence: str
    remedy: str = ""
    runbook: str = ""
    since_ms: int | None = None


@dataclass(slots=True)
class Known:
    """Since when each finding holds, and the counters of deaths, from one look to the next.

    Attributes:
        looked_ms: When the last look was; after a longer time without one, nobody knows when things began.
    """

    since_ms: dict[str, int | None] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)
    died_at_ms: dict[str, int] = field(default_factory=dict)
    looked_ms: int = 0

    def follows(self, now_ms: int) -> bool:
        """True if a look now follows the last one closely."""
        return 0 <= now_ms - self.looked_ms < _FOLLOWS_MS


def find(look: Look, refused_per_s: float | None, known: Known) -> list[Trouble]:
    """All that is wrong now, the worst first.

    Args:
        refused_per_s: Submits that were refused, bulk work left out; None when not known.
        known: Of this page; it is changed.
    """
    found = [
        *_silent(look),
        *_died(look, known),
        *_refusals(refused_per_s or 0.0),
        *_checks(look),
        *_alerts(look),
    ]
    found.sort(key=lambda one: SEVERITIES.index(one.severity))
    unknown = look.now_ms if known.follows(look.now_ms) else None
    known.since_ms = {one.check: known.since_ms.get(one.check, unknown) for one in found}
    known.looked_ms = look.now_ms
    return [replace(one, since_ms=one.since_ms or known.since_ms[one.check]) for one in found]


def is_silent(worker: WorkerFacts) -> bool:
    """True if a worker should have said something by now: sooner than others count it as stuck."""
    return worker.seen_ms_ago > SILENT_MS


def _silent(look: Look) -> Iterator[Trouble]:
    silent = [one for one in look.facts.workers if is_silent(one) and not one.stuck]
    if silent:
        names = ", ".join(one.name for one in silent)
        yield Trouble(
            severity="notice" if all(one.kind in _YIELDING for one in silent) else "warning",
            check="silent workers",
            sentence=f"{_count(len(silent), 'worker')} went silent (killed, stopped or cut off): {names}",
            remedy="nothing is lost: others take over within 3 s; look at the worker's log and machine",
            runbook="no_worker",
        )


def _died(look: Look, known: Known) -> Iterator[Trouble]:
    counted = {n: v for n, v in look.facts.counters.items() if n.startswith("worker_died:")}
    for name, count in counted.items():
        if known.follows(look.now_ms) and count > known.deaths.get(name, 0):
            known.died_at_ms[name] = look.now_ms
    known.deaths = counted
    for name, at_ms in known.died_at_ms.items():
        if 0 <= look.now_ms - at_ms < DEATH_TOLD_MS:  # not for an hour after the clock went back by one
            kind = name.partition(":")[2]
            yield Trouble(
                severity="notice",
                check=f"death of {kind}",
                sentence=f"A worker of the kind {kind} died, and its pool starts another",
                remedy="once is no trouble; when it goes on, the workers' log says why",
                runbook="crash_loop",
                since_ms=at_ms,
            )


def _refusals(refused: float) -> Iterator[Trouble]:
    if refused:
        yield Trouble(
            severity="error",
            check="refused",
            sentence=f"The queue is full: {refused:,.0f} submits a second are refused",
            remedy="add AMN workers, or slow the producers down",
            runbook="refused",
        )


def _checks(look: Look) -> Iterator[Trouble]:
    # While others of its kind work, one worker that is stuck or silent costs time and no request.
    served = all(_has_working(look, one.kind) for one in look.facts.workers if one.kind != "shadow")
    for result in check(look.facts):
        if result.level != OK:
            found = _of_check(result)
            yield replace(found, severity="warning") if result.check == "progress" and served else found


def _has_working(look: Look, kind: str) -> bool:
    mine = [one for one in look.facts.workers if one.kind == kind]
    return any(not one.stuck or (kind in _YIELDING and one.stuck_ms <= STUCK_MS) for one in mine)


def _of_check(result: CheckResult) -> Trouble:
    text, runbook = result.text, ""
    fact, _, remedy = text.partition("; ")
    if result.check.endswith(" stream"):
        name = result.check.removesuffix(" stream")
        first, runbook = f"Requests wait too long on the stream {name}", "backlog_age"
    else:
        first, runbook = _CHECKS.get(result.check, (result.check.capitalize(), ""))
    return Trouble(
        severity=_SEVERITY.get(result.level, "warning"),
        check=result.check,
        sentence=f"{first}: {fact.removeprefix(MISSING)}",
        remedy=remedy or "`amn doctor` says more",
        runbook=runbook,
    )


def _alerts(look: Look) -> Iterator[Trouble]:
    for one in look.alerts:
        if one.phase == "firing" and not one.beside:
            silenced = "silenced" if one.silence else ""
            named = ", ".join(filter(None, (one.rule, one.model, one.lane, silenced)))
            yield Trouble(
                severity="notice" if one.silence else _SEVERITY.get(one.severity, "warning"),
                check=f"alert {one.id[:8]}",
                sentence=f"{told(one.rule)}: {one.summary} ({named})",
                remedy=f"`amn alerts show {one.id[:8]}`",
                runbook=one.runbook,
                since_ms=one.since_ms or None,
            )


def verdict(found: Sequence[Trouble], look: Look, settings: AlertSettings) -> dict[str, object]:
    """One sentence on the whole service: the worst finding, or that it is well."""
    if not found:
        alive = _count(len(look.facts.workers), "worker")
        return {"state": "well", "sentence": f"All is well: {alive} at work, and nothing is wrong"}
    worst, more = found[0], sum(one.severity != "notice" for one in found) - 1
    if worst.severity == "notice":
        return {"state": "well", "sentence": f"It is well; {worst.sentence[0].lower()}{worst.sentence[1:]}"}
    return {
        "state": "broken" if worst.severity == "error" else "degraded",
        "sentence": worst.sentence + (f" (and {_count(more, 'other finding')})" if more else ""),
        "since_ms": worst.since_ms,
        "remedy": worst.remedy,
        "runbook_link": settings.runbook(worst.runbook) if worst.runbook else "",
    }


def away(since_ms: int, error: ServerError, settings: AlertSettings) -> dict[str, object]:
    """The verdict while the server cannot be asked; no word of it changes while that lasts."""
    refused = isinstance(error, AuthenticationFailed)
    what = "does not let this page look" if refused else "cannot be reached"
    remedy = "see that the server runs and can be reached; requests wait meanwhile, and go on by themselves"
    if refused:
        remedy = "start the page with the password of a user that has the role ops: `amn acl ops`"
    return {
        "state": "unknown",
        "sentence": f"The queue's server {what}: {error}",
        "since_ms": since_ms,
        "remedy": remedy,
        "runbook_link": "" if refused else settings.runbook("server_down"),
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
