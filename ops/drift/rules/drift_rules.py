"""The three drift rules: from the evidence on one series to a result. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ops.drift.latch import RuleResult
from ops.drift.measures.comparison import Comparison
from ops.drift.rules import drops, wording
from ops.drift.settings import JudgeSettings


class Evidence(NamedTuple):
    """The numbers of one series that the drift rules go by.

    Attributes:
        seen: 24 h against the reference; None when either is missing.
        changes: What the fast detector sees, by watched mean; empty without a baseline.
    """

    seen: Comparison | None
    changes: Mapping[str, drops.Change]
    bars: drops.Bars
    end_block: int


def ood_delta(at: Evidence, settings: JudgeSettings) -> RuleResult:
    """The delta fell over 24 h."""
    seen, u = at.seen, at.bars.delta_se
    return RuleResult(
        severity=drops.delta_fires(seen, u, settings) if seen else drops.REST,
        lasting=drops.delta_lasts(seen, settings) if seen else None,
        change_block=at.end_block,
        summary=wording.delta_text(seen),
        values=wording.comparison_values(seen) | {"u_se": round(u, 2)} if seen else {},
    )


def fast_drop(at: Evidence, settings: JudgeSettings) -> RuleResult:
    """The fast detector alarms on the delta."""
    change = at.changes["delta"]
    return RuleResult(
        severity=drops.fast_fires(change, settings),
        lasting=drops.delta_lasts(at.seen, settings) if at.seen else None,
        change_block=change.block,
        summary=wording.fast_text(change),
        values=wording.change_values(change),
    )


def level(at: Evidence, settings: JudgeSettings) -> RuleResult:
    """A mean fell, over 24 h or by the fast detector."""
    seen, u = at.seen, at.bars.level_se
    slow = drops.level_fires(seen, u, settings) if seen else drops.REST
    fast = drops.fast_level_fires(at.changes, settings) if at.changes else drops.REST
    alarms = {name: at.changes[name] for name in ("ood", "id") if at.changes and at.changes[name].alarms}
    values = wording.comparison_values(seen) | {"u_se": round(u, 2)} if seen else {}
    if alarms:
        newest = wording.change_values(max(alarms.values(), key=lambda change: change.block))
        since = {f"{name}_since": newest[name] for name in ("change_ood", "change_id")}
        values |= {**since, "changed_at_min": newest["changed_at_min"]}
    return RuleResult(
        severity=drops.PAGE if drops.PAGE in (slow, fast) else slow or fast,
        lasting=drops.level_lasts(seen, settings) if seen else None,
        change_block=max(at.changes[name].block for name in ("ood", "id")) if fast else at.end_block,
        summary=wording.level_text(seen, alarms),
        values=values,
    )


class DriftRule(NamedTuple):
    """A drift rule.

    Attributes:
        evaluate: Its condition on the evidence.
        rows: Watched means of the fast detector whose evidence ends with the rule's incident.
        evaluations: Evaluations in a row that must fire before somebody is told.
    """

    evaluate: Callable[[Evidence, JudgeSettings], RuleResult]
    rows: tuple[int, ...] = ()
    evaluations: int = 3


RULES = {
    "ood_delta": DriftRule(ood_delta),
    "fast_drop": DriftRule(fast_drop, (0,), 1),
    "level": DriftRule(level, (1, 2)),
}
