"""The table: what somebody must be told of the running service, each condition once.

The judge evaluates `Number.measure` each minute; prometheus.py writes `Number.series` into the
rules file. Both compare the same number with the same bar. A new rule is a row here and a heading in
docs/runbook.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ops.drift.service.live import KINDS, LOST, Live, Service
from ops.findings import Finding, Severity, service_finding
from ops.health.server import MEMORY_FAILURE, MEMORY_WARNING
from producer.settings import ProducerSettings

_LIMITS = ProducerSettings()
_LEVELS = ("requests:high", "requests", "requests:low")
_STREAMS = {"amn": _LEVELS, "fallback": ("fallback", "fallback:secondary"), "shadow": ("shadow",)}
_SOON = ("requests:high", "requests", *_STREAMS["fallback"])
#: Blocks of five minutes that make "ten minutes", and refusals that make a share of them a number.
_RECENT, _REFUSED_MIN = 2, 100


class Number(NamedTuple):
    """A number of the service: as the judge measures it (None: not known yet), and as PromQL by queue."""

    measure: Callable[[Live, Service], float | None]
    series: str


class Condition(NamedTuple):
    """The condition and the severity of a rule.

    Attributes:
        above: It fires above this.
        says: For a person; `{value}` is the number.
        minutes: Evaluations in a row, a minute apart; the same for all conditions of one severity.
    """

    severity: Severity
    number: Number
    above: float
    says: str
    minutes: int = 2


class Rule(NamedTuple):
    """A name with a heading in the runbook, its annotation, and its conditions, the loudest first."""

    name: str
    summary: str
    conditions: tuple[Condition, ...]


def _age(*names: str) -> Number:
    series = f'max by (queue) (amn_stream_oldest_age_seconds{{stream=~"{"|".join(names)}"}})'
    return Number(lambda live, _: live.age_s(*names), series)


def _working(kind: str) -> str:
    return f'sum by (queue) (amn_workers{{kind="{kind}"}} - amn_workers_stuck{{kind="{kind}"}})'


def _unserved(kind: str) -> Number:
    """Age of the oldest entry that waits for a worker of a kind, while none lives."""
    age = _age(*_STREAMS[kind])
    return Number(
        lambda live, service: 0.0 if live.working(kind) else age.measure(live, service),
        f"{age.series} unless on (queue) ({_working(kind)} > 0)",
    )


def _filled(metric: str, limit: int) -> str:
    return f'sum by (queue) ({metric}{{stream=~"{"|".join(_LEVELS)}"}}) / {limit}'


def _fullness(live: Live, _: Service) -> float:
    entries, size_bytes = live.size(*_LEVELS)
    return max(entries / _LIMITS.entries_max, size_bytes / _LIMITS.bytes_max)


def _increase(metric: str) -> str:
    return f"sum by (queue) (increase({metric}[10m]))"


def _grown(metric: str, *fields: str) -> Number:
    return Number(lambda _, service: service.recent(_RECENT, fields), _increase(metric))


def _refused(_: Live, service: Service) -> float | None:
    refused, accepted = (
        service.recent(_RECENT, (f"{what}:high", f"{what}:normal")) for what in ("refused", "accepted")
    )
    if refused is None or accepted is None:
        return None
    return refused / (refused + accepted) if refused >= _REFUSED_MIN else 0.0


def _memory(live: Live, _: Service) -> float:
    limit = live.server.memory_limit_bytes
    return live.server.used_memory_bytes / limit if limit else 0.0


_SUBMITS = [
    _increase(f'amn_requests_{what}_by_total{{level=~"high|normal"}}') for what in ("refused", "accepted")
]
NO_AMN = Number(
    lambda live, _: float(not live.working("amn") and live.counters.get("answered", 0) > 0),
    f"({_working('amn')} == bool 0) and on (queue) sum by (queue) (amn_requests_answered_total) > 0",
)
FULLNESS = Number(
    _fullness,
    f"{_filled('amn_stream_entries', _LIMITS.entries_max)} > 0.8"
    f" or {_filled('amn_stream_payload_bytes', _LIMITS.bytes_max)}",
)
REFUSED = Number(_refused, f"({_SUBMITS[0]} >= {_REFUSED_MIN}) / ({_SUBMITS[0]} + {_SUBMITS[1]})")
DEATHS = _grown("amn_worker_deaths_total", *(f"worker_died:{kind}" for kind in KINDS))
UNWRITTEN = Number(
    lambda live, _: float(live.server.persistence_failed), "max by (queue) (amn_server_persistence_failed)"
)
MEMORY = Number(
    _memory, "max by (queue) (amn_server_memory_used_bytes / (amn_server_memory_limit_bytes > 0))"
)
DEAD = _grown("amn_requests_dead_total", "dead")
VANISHED = Number(
    lambda _, service: service.risen(_RECENT, LOST), "max by (queue) (delta(amn_requests_lost[15m]))"
)

_MISSING = "no {kind} worker lives, and the oldest of what waits for one is {{value:.0f}} s old"
_DIED = "{value:.0f} workers died in ten minutes, and were started again"
_USED = "the server uses {value:.0%} of the memory that it may use"
_LETTERS = "{value:.0f} requests became dead letters in ten minutes"

RULES = (
    Rule(
        "no_worker",
        "nobody works on what waits",
        (
            Condition("page", _unserved("amn"), 40, _MISSING.format(kind="amn")),
            Condition("page", _unserved("fallback"), 40, _MISSING.format(kind="fallback")),
            Condition("ticket", _unserved("shadow"), 40, _MISSING.format(kind="shadow"), 10),
            Condition("ticket", NO_AMN, 0, "no AMN worker lives any more; nothing waits yet", 10),
        ),
    ),
    Rule(
        "backlog_age",
        "requests wait for {{ $value | humanizeDuration }}",
        (
            Condition("page", _age(*_SOON), 120, "the oldest request waits for {value:.0f} s"),
            Condition(
                "ticket",
                _age("requests:low"),
                3_600,
                "the oldest request of the level low waits for {value:.0f} s",
            ),
        ),
    ),
    Rule(
        "backlog_size",
        "the queue is filled to {{ $value | humanizePercentage }}",
        (
            Condition(
                "page",
                FULLNESS,
                0.8,
                "the queue is filled to {value:.0%}; when it is full, requests are refused",
            ),
        ),
    ),
    Rule(
        "refused",
        "{{ $value | humanizePercentage }} of the submits are refused: the queue is full",
        (
            Condition(
                "page",
                REFUSED,
                0.01,
                "{value:.1%} of the submits of ten minutes were refused: the queue is full",
                1,
            ),
        ),
    ),
    Rule(
        "crash_loop",
        "{{ $value | humanize }} workers died in ten minutes",
        (Condition("page", DEATHS, 14, _DIED, 1), Condition("ticket", DEATHS, 4, _DIED, 1)),
    ),
    Rule(
        "persistence_failed",
        "the server cannot write its files",
        (Condition("page", UNWRITTEN, 0, "the server could not write its append-only file or its snapshot"),),
    ),
    Rule(
        "server_memory",
        "the server uses {{ $value | humanizePercentage }} of its memory",
        (
            Condition("page", MEMORY, MEMORY_FAILURE, _USED, 3),
            Condition("ticket", MEMORY, MEMORY_WARNING, _USED, 3),
        ),
    ),
    Rule(
        "dead_letters",
        "{{ $value | humanize }} requests became dead letters in ten minutes",
        (Condition("page", DEAD, 500, _LETTERS, 1), Condition("ticket", DEAD, 20, _LETTERS, 1)),
    ),
    Rule(
        "unanswered",
        "{{ $value | humanize }} requests ended in no way, and wait nowhere",
        (
            Condition(
                "ticket",
                VANISHED,
                0.5,
                "{value:.0f} requests of the last minutes ended in no way, and wait nowhere",
            ),
        ),
    ),
)


def conditions(live: Live, service: Service) -> list[Finding]:
    """One finding a rule: by its loudest condition that fires."""
    return [_finding(rule, live, service) for rule in RULES]


def _finding(rule: Rule, live: Live, service: Service) -> Finding:
    found = [(one, one.number.measure(live, service)) for one in rule.conditions]
    known = [(one, value) for one, value in found if value is not None]
    if not known:
        return service_finding(rule.name, rule.conditions[0].severity, "insufficient", "not known yet")
    for one, value in known:
        if value > one.above:
            said = {"value": round(value, 4)}
            text = one.says.format(value=value)
            return service_finding(rule.name, one.severity, "firing", text, said, evaluations=one.minutes)
    text = "; ".join(f"{value:g} of {one.above:g}" for one, value in known)
    return service_finding(rule.name, known[0][0].severity, "ok", text)
