"""One alert as it is stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, TypeVar, get_args

import structlog

from ops.findings import Finding, Severity

#: "ok" is an alert that was never told, or was resolved.
Phase = Literal["ok", "pending", "firing", "recovering"]
#: The news that a message brings. "" is no message.
Kind = Literal["", "trigger", "raised", "reminder", "resolve"]
#: Ascending.
SEVERITIES: tuple[Severity, ...] = ("ticket", "page")

_LOG = structlog.get_logger("amn.alerts")
_T = TypeVar("_T")
_BYTES_MAX = 1024**2
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One rule on one series, from its first firing evaluation until some time after its end.

    Times are epoch milliseconds; 0 is never.

    Attributes:
        id: Fingerprint: the same for every incident of this rule on this series.
        incident: Name of the present incident; "" when it began before incidents had names.
        rule, severity, model, lane, values, runbook, beside: As `Finding`; the severity is the
            incident's worst so far.
        summary: Text of the rule when it last fired.    latest: Its last text.
        source: Who evaluates it: "judge" or "sender".
        count: Firing evaluations in a row, while pending.    counted_ms: When it last grew.
        seen_ms: Last evaluation of any outcome.
        since_ms: First evaluation of this incident that fired.
        fired_ms: When it was sure.    rests_since_ms: Since when it recovers.
        resolved_ms: When it ended.
        told_ms: When this incident last became news; 0 before it did, and after its end.
        told_severity: The severity that is to be known outside; "" before the first news.
        silence: Id of the silence that holds its news back.
    """

    id: str
    rule: str
    incident: str = ""
    model: str = ""
    lane: str = ""
    severity: Severity = "ticket"
    summary: str = ""
    latest: str = ""
    values: Mapping[str, float | int | str] = field(default_factory=dict)
    runbook: str = ""
    beside: str = ""
    source: str = "judge"
    phase: Phase = "ok"
    count: int = 0
    counted_ms: int = 0
    seen_ms: int = 0
    since_ms: int = 0
    fired_ms: int = 0
    rests_since_ms: int = 0
    resolved_ms: int = 0
    told_ms: int = 0
    told_severity: str = ""
    silence: str = ""

    @classmethod
    def of(cls, finding: Finding, environment: str, source: str) -> Self:
        """Returns the resting alert of a finding."""
        rule, model, lane = finding.identity
        name = fingerprint(environment, rule, model, lane)
        return cls(id=name, rule=rule, model=model, lane=lane, source=source)

    @property
    def name(self) -> str:
        """The name of its present incident."""
        return f"{self.id}|{self.incident}"

    def as_of(self, now_ms: int) -> Self:
        """Returns the alert; when a time in it lies in the future, all are moved back with the clock."""
        times = {name: getattr(self, name) for name in self.__slots__ if name.endswith("_ms")}
        back_ms = max(times.values()) - now_ms
        if back_ms <= 0:
            return self
        return replace(self, **{name: at_ms - back_ms for name, at_ms in times.items() if at_ms})

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Reads the stored form; see `known_fields`."""
        found = cls(**known_fields(cls, stored))
        if found.phase not in get_args(Phase) or found.severity not in SEVERITIES:
            raise ValueError(f"no alert of this version: {found.id!r:.80}")
        return found


def fingerprint(environment: str, rule: str, model: str, lane: str) -> str:
    """32 hexadecimal digits that name an alert for ever; no number and no time is part of it."""
    return hashlib.sha256("|".join((environment, rule, model, lane)).encode()).hexdigest()[:32]


def louder(one: str, other: str) -> bool:
    """True if severity `one` is above `other`; "" is below all."""
    order = ("", *SEVERITIES)
    return order.index(one) > order.index(other)


def known_fields(kind: type[Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the stored fields of a record; those that a later version added are left out.

    Raises:
        ValueError: A time is no number.
    """
    found = {name: stored[name] for name in kind.__slots__ if name in stored}
    if not {type(value) for name, value in found.items() if name.endswith("_ms")} <= {int, float}:
        raise ValueError(f"a time that is no number: {found!r:.80}")
    return found


def readable(stored: Iterable[bytes], make: Callable[[Any], _T]) -> list[_T]:
    """Returns the records that can be read, and logs the others."""
    return [one for one in (read_record(text, make) for text in stored) if one is not None]


def read_record(stored: bytes, make: Callable[[Any], _T]) -> _T | None:
    """Returns a stored record; None when it is too long, no JSON, or JSON of something else."""
    try:
        if len(stored) > _BYTES_MAX:
            raise ValueError(f"a record of {len(stored)} bytes")
        return make(json.loads(stored))
    except _UNREADABLE as error:
        _LOG.error("record_unreadable", detail=f"{type(error).__name__}: {error!s:.200}")
        return None
