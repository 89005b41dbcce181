"""The report of `amn doctor`: the results of the checks, and the facts behind them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ops.health.facts import Facts

OK, WARNING, FAILURE = "ok", "warning", "failure"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check: its level, its name, and the value with what to do about it."""

    level: str
    check: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Facts and results; without facts when the server could not be asked.

    Attributes:
        repaired: What was mended before, a sentence each.
    """

    facts: Facts | None
    results: list[CheckResult] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """True if no check failed; warnings do not count."""
        return all(result.level != FAILURE for result in self.results)

    def to_json(self) -> dict[str, Any]:
        """The object of `amn doctor --json`."""
        facts = asdict(self.facts) if self.facts else {}
        findings = [asdict(result) for result in self.results]
        return {"healthy": self.healthy, **facts, "findings": findings, "repaired": self.repaired}
