"""The table: what somebody must be told of the running service, each condition once.

The judge evaluates `measure` each minute; prometheus.py writes `series` into the rules file. Both compare
the same number with the same bar. A new rule is a row here and a heading in docs/runbook.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ops.drift.service.live import LOST, Live
from ops.drift.service.objectives import Service, service_finding
from ops.findings import Finding, Severity
from ops.health.server import MEMORY_FAILURE, MEMORY_WARNING
from producer.settings import ProducerSettings

#: A number, or None while it cannot be told.
Measure = Callable[[Live, Service], float | None]
_LIMITS = ProducerSettings()
_LEVELS = ("requests:high", "requests", "requests:low")
_STREAMS = {"amn": _LEVELS, "fallback": ("fallback", "fallback:secondary"), "shadow": ("shadow",)}
_SOON = ("requests:high", "requests", *_STREAMS["fallback"])
_DIED = tuple(f"worker_died:{kind}" for kind in _STREAMS)
_REFUSED, _ACCEPTED = (
    tuple(f"{what}:{level}" for level in ("high", "normal")) for what in ("refused", "accepted")
)
#: Blocks of five minutes that make "ten minutes", and refusals that make a share of them a number.
_RECENT, _REFUSED_MIN = 2, 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """The condition and the severity of a rule.

    Attributes:
        says: For a person; `{value}` is the number.
        measure: The number.    series: The same as PromQL, by queue.
        above: It fires above this.
        minutes: And has done so at so many looks, a minute apart; the same for all of one severity.
    """

    severity: Severity
    says: str
    measure: Measure
    series: str
    above: float
    minutes: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A name with a heading in the runbook, and its conditions, the loudest first."""

    name: str
    summary: str
    conditions: tuple[Condition, ...]


def _bars(page: float, ticket: float) -> tuple[tuple[Severity, float], ...]:
    return ("page", page), ("ticket", ticket)


def _missing(kind: str) -> Measure:
    return lambda live, _: 0.0 if live.working(kind) else live.age_s(*_STREAMS[kind])


def _missing_series(kind: str) -> str:
    return f"{_oldest(*_STREAMS[kind])} unless on (queue) ({_working(kind)} > 0)"


def _working(kind: str) -> str:
    return f'sum by (queue) (amn_workers{{kind="{kind}"}} - amn_workers_stuck{{kind="{kind}"}})'


def _oldest(*names: str) -> str:
    return f'max by (queue) (amn_stream_oldest_age_seconds{{stream=~"{"|".join(names)}"}})'


def _fullness(live: Live, _: Service) -> float:
    entries, size_bytes = live.size(*_LEVELS)
    return max(entries / _LIMITS.entries_max, size_bytes / _LIMITS.bytes_max)


def _filled(metric: str, limit: int) -> str:
    return f'sum by (queue) ({metric}{{stream=~"{"|".join(_LEVELS)}"}}) / {limit}'


def _refused(_: Live, service: Service) -> float | None:
    refused, accepted = (service.recent(_RECENT, names) for names in (_REFUSED, _ACCEPTED))
    if refused is None or accepted is None:
        return None
    return refused / (refused + accepted) if refused >= _REFUSED_MIN else 0.0


def _grown(*names: str) -> Measure:
    return lambda _, service: service.recent(_RECENT, names)


def _increase(metric: str) -> str:
    return f"sum by (queue) (increase({metric}[10m]))"


def _memory(live: Live, _: Service) -> float:
    limit = live.server.memory_limit_bytes
    return live.server.used_memory_bytes / limit if limit else 0.0


_NORMAL = '{level=~"high|normal"}'
_MEMORY = "max by (queue) (amn_server_memory_used_bytes / (amn_server_memory_limit_bytes > 0))"
_MISSING = "no {kind} worker lives, and the oldest of what waits for one is {{value:.0f}} s old"
_DEAD, _DEATHS = _increase("amn_requests_dead_total"), _increase("amn_worker_deaths_total")

RULES = (
    Rule(
        name="no_worker",
        summary="nobody works on what waits",
        conditions=(
            *(
                Condition(
                    severity="page" if kind != "shadow" else "ticket",
                    says=_MISSING.format(kind=kind),
                    measure=_missing(kind),
                    series=_missing_series(kind),
                    above=40,
                    minutes=2 if kind != "shadow" else 10,
                )
                for kind in _STREAMS
            ),
            Condition(
                severity="ticket",
                says="no AMN worker lives any more; nothing waits yet",
                measure=lambda live, _: float(
                    not live.working("amn") and live.counters.get("answered", 0) > 0
                ),
                series=f"({_working('amn')} == bool 0)"
                " and on (queue) sum by (queue) (amn_requests_answered_total) > 0",
                above=0,
                minutes=10,
            ),
        ),
    ),
    Rule(
        name="backlog_age",
        summary="requests wait for {{ $value | humanizeDuration }}",
        conditions=(
            Condition(
                severity="page",
                says="the oldest request waits for {value:.0f} s",
                measure=lambda live, _: live.age_s(*_SOON),
                series=_oldest(*_SOON),
                above=120,
            ),
            Condition(
                severity="ticket",
                says="the oldest request of the level low waits for {value:.0f} s",
                measure=lambda live, _: live.age_s("requests:low"),
                series=_oldest("requests:low"),
                above=3_600,
            ),
        ),
    ),
    Rule(
        name="backlog_size",
        summary="the queue is filled to {{ $value | humanizePercentage }}",
        conditions=(
            Condition(
                severity="page",
                says="the queue is filled to {value:.0%}; when it is full, requests are refused",
                measure=_fullness,
                series=f"{_filled('amn_stream_entries', _LIMITS.entries_max)} > 0.8"
                f" or {_filled('amn_stream_payload_bytes', _LIMITS.bytes_max)}",
                above=0.8,
            ),
        ),
    ),
    Rule(
        name="refused",
        summary="{{ $value | humanizePercentage }} of the submits are refused: the queue is full",
        conditions=(
            Condition(
                severity="page",
                says="{value:.1%} of the submits of ten minutes were refused: the queue is full",
                measure=_refused,
                series=f"({_increase('amn_requests_refused_by_total' + _NORMAL)} >= {_REFUSED_MIN})"
                f" / ({_increase('amn_requests_refused_by_total' + _NORMAL)}"
                f" + {_increase('amn_requests_accepted_by_total' + _NORMAL)})",
                above=0.01,
                minutes=1,
            ),
        ),
    ),
    Rule(
        name="crash_loop",
        summary="{{ $value | humanize }} workers died in ten minutes",
        conditions=tuple(
            Condition(
                severity=severity,
                says="{value:.0f} workers died in ten minutes, and were started again",
                measure=_grown(*_DIED),
                series=_DEATHS,
                above=above,
                minutes=1,
            )
            for severity, above in _bars(14, 4)
        ),
    ),
    Rule(
        name="persistence_failed",
        summary="the server cannot write its files",
        conditions=(
            Condition(
                severity="page",
                says="the server could not write its append-only file or its snapshot",
                measure=lambda live, _: float(live.server.persistence_failed),
                series="max by (queue) (amn_server_persistence_failed)",
                above=0,
            ),
        ),
    ),
    Rule(
        name="server_memory",
        summary="the server uses {{ $value | humanizePercentage }} of its memory",
        conditions=tuple(
            Condition(
                severity=severity,
                says="the server uses {value:.0%} of the memory that it may use",
                measure=_memory,
                series=_MEMORY,
                above=above,
                minutes=3,
            )
            for severity, above in _bars(MEMORY_FAILURE, MEMORY_WARNING)
        ),
    ),
    Rule(
        name="dead_letters",
        summary="{{ $value | humanize }} requests became dead letters in ten minutes",
        conditions=tuple(
            Condition(
                severity=severity,
                says="{value:.0f} requests became dead letters in ten minutes",
                measure=_grown("dead"),
                series=_DEAD,
                above=above,
                minutes=1,
            )
            for severity, above in _bars(500, 20)
        ),
    ),
    Rule(
        name="unanswered",
        summary="{{ $value | humanize }} requests ended in no way, and wait nowhere",
        conditions=(
            Condition(
                severity="ticket",
                says="{value:.0f} requests of the last minutes ended in no way, and wait nowhere",
                measure=lambda _, service: service.risen(_RECENT, LOST),
                series="max by (queue) (delta(amn_requests_lost[15m]))",
                above=0.5,
            ),
        ),
    ),
)


def conditions(live: Live, service: Service) -> list[Finding]:
    """One finding a rule: by its loudest condition that fires."""
    return [_finding(rule, live, service) for rule in RULES]


def _finding(rule: Rule, live: Live, service: Service) -> Finding:
    found = [(one, one.measure(live, service)) for one in rule.conditions]
    known = [(one, value) for one, value in found if value is not None]
    if not known:
        return service_finding(rule.name, rule.conditions[0].severity, "insufficient", "not known yet")
    for one, value in known:
        if value > one.above:
            said = {"value": round(value, 4)}
            text = one.says.format(value=value)
            return service_finding(rule.name, one.severity, "firing", text, said, evaluations=one.minutes)
    return service_finding(rule.name, known[0][0].severity, "ok", "; ".join(_rests(known)))


def _rests(known: list[tuple[Condition, float]]) -> Iterator[str]:
    for one, value in known:
        yield f"{value:g} of {one.above:g}"
