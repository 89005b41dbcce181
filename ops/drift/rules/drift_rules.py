"""The three drift rules: from the evidence on one series to a result, in numbers and words. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ops.clock import BLOCK_MIN
from ops.drift.latch import RuleResult
from ops.drift.measures.comparison import Comparison
from ops.drift.rules import drops
from ops.drift.settings import JudgeSettings

Values = dict[str, float | int | str]


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
    """The delta fell over 24 h; the text says what its drop is made of: dD = dm_OOD - dm_ID."""
    seen, u = at.seen, at.bars.delta_se
    if seen is None:
        return _unknown(at)
    low, high = seen.delta.interval
    fixed = seen.delta.standardised
    mixture = "" if math.isnan(fixed) else f"; with the mixture of lanes held fixed {-fixed:+.4f}"
    return RuleResult(
        severity=drops.delta_fires(seen, u, settings),
        lasting=drops.delta_lasts(seen, settings),
        change_block=at.end_block,
        summary=f"OOD delta {seen.delta.now:.4f}, {_KINDS[seen.reference.kind]} {seen.delta.expected:.4f}: "
        f"drop {seen.delta.value:+.4f} (99 % CI {low:+.4f} to {high:+.4f}) over 24 h; "
        f"m_OOD {-seen.ood.value:+.4f}, m_ID {-seen.inside.value:+.4f}{mixture}; "
        f"n {seen.n_ood:,.0f} OOD, {seen.n_id:,.0f} ID{_lacks(seen)}",
        values=comparison_values(seen) | {"u_se": round(u, 2)},
    )


def fast_drop(at: Evidence, settings: JudgeSettings) -> RuleResult:
    """The fast detector alarms on the delta."""
    change = at.changes["delta"]
    evidence = f"{change.evidence:.1f} of {change.needed:.1f} (log)"
    return RuleResult(
        severity=drops.fast_fires(change, settings),
        lasting=drops.delta_lasts(at.seen, settings) if at.seen else None,
        change_block=change.block,
        summary=f"OOD delta fell by {change.delta:.4f} +- {change.error:.4f} since {clock(change.block)}: "
        f"m_OOD {-change.ood:+.4f}, m_ID {-change.inside:+.4f}; evidence {evidence}"
        if change.alarms
        else f"evidence for a drop {evidence}",
        values=_finite(
            evidence_log=change.evidence,
            evidence_needed_log=change.needed,
            drop=change.delta,
            drop_error=change.error,
            change_ood=-change.ood,
            change_id=-change.inside,
            changed_at_min=change.block * BLOCK_MIN,
        ),
    )


def level(at: Evidence, settings: JudgeSettings) -> RuleResult:
    """A mean fell, over 24 h or by the fast detector."""
    seen, u = at.seen, at.bars.level_se
    means = {"m_OOD": at.changes["ood"], "m_ID": at.changes["id"]} if at.changes else {}
    alarms = {name: change for name, change in means.items() if change.alarms}
    fast = drops.fast_level_fires(at.changes, settings) if at.changes else drops.REST
    result = _unknown(at)
    if seen is not None:
        result = RuleResult(
            severity=drops.level_fires(seen, u, settings),
            lasting=drops.level_lasts(seen, settings),
            change_block=at.end_block,
            summary=f"m_OOD {seen.ood.now:.4f} ({-seen.ood.value:+.4f}), m_ID {seen.inside.now:.4f} "
            f"({-seen.inside.value:+.4f}) over 24 h against the {_KINDS[seen.reference.kind]}",
            values=comparison_values(seen) | {"u_se": round(u, 2)},
        )
    said, values = result.summary, dict(result.values)
    if alarms:
        drop = {name: change.ood if name == "m_OOD" else change.inside for name, change in alarms.items()}
        since = (f"{name} {-drop[name]:+.4f} since {clock(one.block)}" for name, one in alarms.items())
        said += f"; fast detector: {', '.join(since)}"
        newest = max(alarms.values(), key=lambda change: change.block)
        values |= _finite(change_ood_since=-newest.ood, change_id_since=-newest.inside)
        values["changed_at_min"] = newest.block * BLOCK_MIN
    return RuleResult(
        severity=drops.loudest(result.severity, fast),
        lasting=result.lasting,
        change_block=max(change.block for change in means.values()) if fast else at.end_block,
        summary=said + (_lacks(seen) if seen else ""),
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
_KINDS = {"baseline": "baseline", "previous": "24 h before"}


def comparison_values(seen: Comparison) -> Values:
    """The numbers of a comparison."""
    low, high = seen.delta.interval
    return _finite(
        delta=seen.delta.now,
        delta_expected=seen.delta.expected,
        drop=seen.delta.value,
        drop_error=seen.delta.error,
        drop_low_99=low,
        drop_high_99=high,
        drop_recent=seen.delta.recent,
        drop_fixed_mixture=seen.delta.standardised,
        z_se=seen.delta.z,
        change_ood=-seen.ood.value,
        change_id=-seen.inside.value,
        mean_ood=seen.ood.now,
        mean_id=seen.inside.now,
        n_ood=round(seen.n_ood),
        n_id=round(seen.n_id),
        coverage=seen.coverage,
        minutes=seen.minutes,
        inflation=seen.inflation,
        reference=seen.reference.kind,
    )


def clock(block: int) -> str:
    """Start of a block, UTC."""
    minutes = block * BLOCK_MIN % (24 * 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d} UTC"


def _unknown(at: Evidence) -> RuleResult:
    text = "no baseline yet, and no two whole days to compare"
    return RuleResult(severity=drops.REST, lasting=None, change_block=at.end_block, summary=text)


def _lacks(seen: Comparison) -> str:
    return f"; cannot judge: {seen.lacks}" if seen.lacks else ""


def _finite(**values: float | int | str) -> Values:
    """Rounded to six places; what is not known is left out."""
    rounded = {name: round(v, 6) if isinstance(v, float) else v for name, v in values.items()}
    return {name: v for name, v in rounded.items() if isinstance(v, str) or math.isfinite(v)}
