"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, FAILURE = "ok", "warning", "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome: what, which value, what to do."""

    level: str
    check: str
    text: str
