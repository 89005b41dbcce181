"""The latch that keeps a rule firing from its first moment to a recovery that lasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from ops.drift.measures.baseline import Reference
from ops.drift.measures.blocks import ALL
from ops.drift.settings import JudgeSettings
from ops.findings import Finding, Severity

#: How loudly a rule fires now.
Fires = Literal["page", "ticket", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latch:
    """A rule that fires on one series.

    Attributes:
        severity: The worst so far; it does not sink while the rule fires.
        since_ms: When it began to fire.
        change_block: Block from which on the drop is there, as far as is known.
        gone_since_ms: When the drop was last seen to have gone; 0 while it is there.
        beside: Rule whose page tells the same story; this one is then a ticket.
        reference: What the series was compared with then. It does not move with the window.
    """

    severity: Severity
    since_ms: int
    change_block: int
    gone_since_ms: int = 0
    beside: str = ""
    reference: Reference | None = None

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `stored.dumps`."""
        reference = stored["reference"] and Reference.from_json(stored["reference"])
        return cls(**{**stored, "reference": reference})


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleResult:
    """A rule on a series at one evaluation, before the latch.

    Attributes:
        severity: "page" or "ticket" while the rule's condition holds, else "".
        lasting: Says whether the drop is there in the newest window; None when nothing is known.
        seen_from_block: First block of that window.
        change_block: Block in which the drop began.
        summary: One line for a person.    values: The numbers behind it.
        reference: What the series was compared with.
    """

    severity: Fires
    lasting: bool | None
    change_block: int
    seen_from_block: int = 0
    summary: str = ""
    values: Mapping[str, float | int | str] = field(default_factory=dict)
    reference: Reference | None = None


def advance(
    latches: dict[str, Latch], name: str, result: RuleResult, now_ms: int, settings: JudgeSettings
) -> bool:
    """Moves the latch of a rule on, and returns True when its incident ends now.

    A rule begins to fire at once. It rests when the drop has been gone for `recovered_min` without a
    break, and not before `firing_min`. Not to know is not a recovery, and a window that reaches back
    before the change does not know.
    """
    latch = latches.get(name)
    if latch is None:
        if result.severity:
            latches[name] = Latch(
                severity=result.severity,
                since_ms=now_ms,
                change_block=result.change_block,
                reference=result.reference,
            )
        return False
    if result.severity == "page":
        latch = replace(latch, severity="page")
    gone = result.lasting is False and result.seen_from_block >= latch.change_block
    latches[name] = latch = replace(latch, gone_since_ms=(latch.gone_since_ms or now_ms) if gone else 0)
    rested = gone and now_ms - latch.gone_since_ms >= settings.recovered_min * 60_000
    ended = rested and now_ms - latch.since_ms >= settings.firing_min * 60_000
    if ended:
        del latches[name]
    return ended


def one_page_each(findings: Sequence[Finding], latches: dict[str, Latch]) -> list[Finding]:
    """Leaves one page among findings with one cause; all others stand beside it.

    A page about all lanes covers each of them. What stands beside another stays so until it rests:
    nobody is woken again because the first one ended a minute earlier.
    """
    told = []
    for finding in findings:
        name = f"{finding.rule}|{finding.lane}"
        if finding.state == "firing" and name in latches:
            beside = latches[name].beside or _covering(name, latches)
            latches[name] = replace(latches[name], beside=beside)
            if beside:
                finding = replace(finding, severity="ticket", beside=beside)
        told.append(finding)
    return told


def _covering(name: str, latches: Mapping[str, Latch]) -> str:
    """Returns "rule" or "rule/lane" of a page with a stronger claim on the same lane or on all, or ""."""
    since_ms, lane = latches[name].since_ms, name.partition("|")[2]
    for other, latch in sorted(latches.items(), key=_claim):
        if other == name:
            return ""
        covers = latch.severity == "page" and not latch.beside and other.partition("|")[2] in (lane, ALL)
        if covers and latch.since_ms <= since_ms:
            return other.replace("|", "/").rstrip("/")
    return ""


def _claim(item: tuple[str, Latch]) -> tuple[int, bool, int]:
    """Oldest first; of one minute, all lanes before one, and the fast rule before the others."""
    rule, _, lane = item[0].partition("|")
    return item[1].since_ms, lane != ALL, {"fast_drop": 0, "ood_delta": 1}.get(rule, 2)
