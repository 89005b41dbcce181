"""The latch that keeps a rule firing from its first moment to a recovery that lasts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, cast

from ops.drift.measures.baseline import Reference
from ops.drift.settings import JudgeSettings
from ops.findings import Severity


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

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "reference"}
        return {**plain, "reference": None if self.reference is None else self.reference.to_json()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        reference = stored["reference"]
        known = None if reference is None else Reference.from_json(reference)
        return cls(**{**stored, "reference": known})


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The result of one evaluation for a rule on a series.

    Attributes:
        fires: "page", "ticket" or "".
        lasting: Whether the drop is still there; None when too little was seen since it began.
        change_block: Where it began.
    """

    fires: Severity | str
    lasting: bool | None
    change_block: int = 0


def advance(
    latch: Latch | None, seen: Seen, reference: Reference | None, now_ms: int, settings: JudgeSettings
) -> Latch | None:
    """The latch after this evaluation, or None when the rule rests.

    A rule begins to fire at once. It rests when the drop has been gone for `recovered_min` without a
    break, and not before `firing_min`. Not to know is not a recovery.
    """
    if latch is None:
        if not seen.fires:
            return None
        return Latch(
            severity=cast(Severity, seen.fires),
            since_ms=now_ms,
            change_block=seen.change_block,
            reference=reference,
        )
    if seen.fires == "page":
        latch = replace(latch, severity="page")
    if seen.lasting is not False:
        return replace(latch, gone_since_ms=0)
    latch = replace(latch, gone_since_ms=latch.gone_since_ms or now_ms)
    rested = now_ms - latch.gone_since_ms >= settings.recovered_min * 60_000
    return None if rested and now_ms - latch.since_ms >= settings.firing_min * 60_000 else latch
