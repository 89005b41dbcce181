"""The outcome of one check of the doctor."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, FAILURE = "ok", "warning", "failure"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check: its level, its name, and the value with what to do about it."""

    level: str
    check: str
    text: str


def ok(check: str, text: str) -> CheckResult:
    """A check that found nothing wrong."""
    return CheckResult(OK, check, text)


def warning(check: str, text: str) -> CheckResult:
    """A check that found what somebody should change some day."""
    return CheckResult(WARNING, check, text)


def failure(check: str, text: str) -> CheckResult:
    """A check that found what must be mended now."""
    return CheckResult(FAILURE, check, text)
