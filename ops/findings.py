"""The judge's findings of each minute, which the alerts act on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

Severity = Literal["page", "ticket"]
State = Literal["firing", "ok", "insufficient"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One rule on one series at one evaluation.

    Attributes:
        rule: Name of the rule, stable: "ood_delta", "fast_drop", "level", "canary", ...
        severity: "page" wakes somebody up; "ticket" waits for working hours.
        state: "firing" when the rule's condition holds now, "ok" when it does not, "insufficient"
            when there is too little data to say. No data is neither well nor ill.
        model: Model id, or "" for a rule about the whole service.
        lane: Lane, or "" for all of them.
        summary: One line for a person.
        values: What the rule looked at, by name with the unit last. Never part of the identity.
        runbook: Heading of docs/runbook.md that says what to do.
        evaluations: How many evaluations in a row must fire before somebody is told.
        beside: Rule (and lane) whose page tells the same story already, as "rule" or "rule/lane";
            this finding is shown, and nobody is told by it.
    """

    rule: str
    severity: Severity
    state: State
    model: str = ""
    lane: str = ""
    summary: str = ""
    values: Mapping[str, float | int | str] = field(default_factory=dict)
    runbook: str = ""
    evaluations: int = 3
    beside: str = ""

    @property
    def identity(self) -> tuple[str, str, str]:
        """The identity that findings of one alert share: rule, model and lane; no number, no time."""
        return (self.rule, self.model, self.lane)


def service_finding(
    rule: str,
    severity: str,
    state: State,
    summary: str,
    values: Mapping[str, float | int | str] | None = None,
    model: str = "",
    evaluations: int = 3,
) -> Finding:
    """A finding over all lanes, with the runbook heading of its rule."""
    return Finding(
        rule=rule,
        severity=cast(Severity, severity),
        state=state,
        model=model,
        summary=summary,
        values=values or {},
        runbook=rule,
        evaluations=evaluations,
    )
