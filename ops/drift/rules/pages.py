"""One story, one page: which of the pages that fire together wakes somebody up. Pure."""

from __future__ import annotations

from dataclasses import replace

from ops.drift.latch import Latch
from ops.drift.measures.blocks import ALL
from ops.drift.state import ModelState
from ops.findings import Finding


def one_page_each(findings: list[Finding], known: ModelState) -> list[Finding]:
    """Leaves one page among findings with one cause; all others stand beside it.

    A page about all lanes covers each of them. What stands beside another stays so until it rests:
    nobody is woken again because the first one ended a minute earlier.
    """
    out = []
    for finding in findings:
        name = f"{finding.rule}|{finding.lane}"
        latch = known.latches.get(name)
        if finding.state == "firing" and latch is not None:
            beside = latch.beside or _covering(name, latch, known)
            known.latches[name] = replace(latch, beside=beside)
            if beside:
                finding = replace(finding, severity="ticket", beside=beside)
        out.append(finding)
    return out


def _covering(name: str, latch: Latch, known: ModelState) -> str:
    """An older page, or one of this minute with a stronger claim, on the same lane or on all.

    Returns:
        "rule" or "rule/lane"; "" when there is none.
    """
    lane = name.partition("|")[2]
    for other, its in sorted(known.latches.items(), key=_claim):
        if other == name:
            return ""
        covers = its.severity == "page" and not its.beside and other.partition("|")[2] in (lane, ALL)
        if covers and its.since_ms <= latch.since_ms:
            return other.replace("|", "/").rstrip("/")
    return ""


def _claim(item: tuple[str, Latch]) -> tuple[int, bool, int]:
    """Oldest first; of one minute, all lanes before one, and the fast rule before the others."""
    rule, _, lane = item[0].partition("|")
    order = {"fast_drop": 0, "ood_delta": 1}
    return item[1].since_ms, lane != ALL, order.get(rule, 2)
