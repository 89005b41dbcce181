"""The table: what somebody must be told of the running service, each condition once.

The judge measures each number once a minute and compares it with the bar. A new rule is a row here, a heading
in docs/runbook.md, and the same bar in ops/deploy/prometheus/amn-rules.yml, for those whom Prometheus tells.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple

from ops.drift.service.live import KINDS, LOST, Service
from ops.findings import Finding, Severity, service_finding
from ops.health.server import MEMORY_FAILURE, MEMORY_WARNING
from ops.health.streams import SERVED
from producer.settings import ProducerSettings

_LIMITS = ProducerSettings()
_LEVELS, _STREAMS = SERVED["amn"], {**SERVED, "shadow": ("shadow",)}
_SOON = ("requests:high", "requests", *_STREAMS["fallback"])
#: Blocks of five minutes that make "ten minutes", and refusals that make a share of them a number.
_RECENT, _REFUSED_MIN = 2, 100
#: A number of the service; None where it is not known yet.
Measure = Callable[[Service], float | None]


class Condition(NamedTuple):
    """A number that must not be above a bar; a rule is its conditions, the loudest first.

    Attributes:
        rule: Name, with a heading in the runbook.
        above: It fires above this.
        says: For a person; `{age}`, `{share}` or `{count}` is the number.
        minutes: Evaluations in a row, a minute apart; the same for all conditions of one severity.
    """

    rule: str
    severity: Severity
    measure: Measure
    above: float
    says: str
    minutes: int = 2


def _age(*names: str) -> Measure:
    return lambda service: service.age_s(*names)


def _grown(*fields: str) -> Measure:
    return lambda service: service.recent(_RECENT, fields)


def _unserved(kind: str) -> Measure:
    """Age of the oldest entry that waits for a worker of a kind, while none lives."""
    return lambda service: 0.0 if service.working(kind) else service.age_s(*_STREAMS[kind])


def _no_amn(service: Service) -> float:
    return float(not service.working("amn") and service.counters.get("answered", 0) > 0)


def _fullness(service: Service) -> float:
    found = [service.streams[name] for name in _LEVELS if name in service.streams]
    size_bytes = sum(one.payload_bytes or 0 for one in found)
    return max(sum(one.entries for one in found) / _LIMITS.entries_max, size_bytes / _LIMITS.bytes_max)


def _refused(service: Service) -> float | None:
    fields = ([f"{what}:high", f"{what}:normal"] for what in ("refused", "accepted"))
    refused, accepted = (service.recent(_RECENT, names) for names in fields)
    if refused is None or accepted is None:
        return None
    return refused / (refused + accepted) if refused >= _REFUSED_MIN else 0.0


def _memory(service: Service) -> float:
    limit = service.server.memory_limit_bytes
    return service.server.used_memory_bytes / limit if limit else 0.0


_DEATHS, _DEAD = _grown(*(f"worker_died:{kind}" for kind in KINDS)), _grown("dead")

_MISSING = "no {} worker lives, and the oldest of what waits for one is {{age}} old"
_IDLE = "no AMN worker lives any more; nothing waits yet"
_LOW = "the oldest request of the level low waits for {age}"
_FULL = "the queue is filled to {share}; when it is full, requests are refused"
_REFUSES = "{share} of the submits of ten minutes were refused: the queue is full"
_DIED = "{count} workers died in ten minutes, and were started again"
_FILES = "the server could not write its append-only file or its snapshot"
_USED = "the server uses {share} of the memory that it may use"
_LETTERS = "{count} requests became dead letters in ten minutes"
_NOWHERE = "{count} requests of the last minutes ended in no way, and wait nowhere"

CONDITIONS = (
    Condition("no_worker", "page", _unserved("amn"), 40, _MISSING.format("amn")),
    Condition("no_worker", "page", _unserved("fallback"), 40, _MISSING.format("fallback")),
    Condition("no_worker", "ticket", _unserved("shadow"), 40, _MISSING.format("shadow"), 10),
    Condition("no_worker", "ticket", _no_amn, 0, _IDLE, 10),
    Condition("backlog_age", "page", _age(*_SOON), 120, "the oldest request waits for {age}"),
    Condition("backlog_age", "ticket", _age("requests:low"), 3_600, _LOW),
    Condition("backlog_size", "page", _fullness, 0.8, _FULL),
    Condition("refused", "page", _refused, 0.01, _REFUSES, 1),
    Condition("crash_loop", "page", _DEATHS, 14, _DIED, 1),
    Condition("crash_loop", "ticket", _DEATHS, 4, _DIED, 1),
    Condition("persistence_failed", "page", lambda now: float(now.server.persistence_failed), 0, _FILES),
    Condition("server_memory", "page", _memory, MEMORY_FAILURE, _USED, 3),
    Condition("server_memory", "ticket", _memory, MEMORY_WARNING, _USED, 3),
    Condition("dead_letters", "page", _DEAD, 500, _LETTERS, 1),
    Condition("dead_letters", "ticket", _DEAD, 20, _LETTERS, 1),
    Condition("unanswered", "ticket", lambda now: now.risen(_RECENT, LOST), 0.5, _NOWHERE),
)


def evaluate_conditions(service: Service) -> list[Finding]:
    """One finding a rule: by its loudest condition that fires."""
    return [_finding(list(rows), service) for _, rows in groupby(CONDITIONS, lambda row: row.rule)]


def _finding(rows: list[Condition], service: Service) -> Finding:
    measured = [(row, row.measure(service)) for row in rows]
    known = [(row, value) for row, value in measured if value is not None]
    if not known:
        return service_finding(rows[0].rule, rows[0].severity, "insufficient", "not known yet")
    for row, value in known:
        if value > row.above:
            said = row.says.format(age=f"{value:.0f} s", share=f"{value:.1%}", count=f"{value:.0f}")
            values = {"value": round(value, 4)}
            return service_finding(row.rule, row.severity, "firing", said, values, evaluations=row.minutes)
    said = "; ".join(f"{value:g} of {row.above:g}" for row, value in known)
    return service_finding(rows[0].rule, known[0][0].severity, "ok", said)
