"""The wording of the drift rules' findings: one line for a person, and the numbers behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ops.clock import BLOCK_MIN
from ops.drift.measures.comparison import Comparison
from ops.drift.rules.drops import Change
from ops.findings import Finding

Values = dict[str, float | int | str]
_NO_REFERENCE = "no baseline yet, and no two whole days to compare"


def delta_text(seen: Comparison | None) -> str:
    """The delta of 24 h, its drop with a 99 % interval, and what it is made of: dD = dm_OOD - dm_ID."""
    if seen is None:
        return _NO_REFERENCE
    low, high = seen.delta.interval
    fixed = seen.delta.standardised
    mixture = "" if math.isnan(fixed) else f"; with the mixture of lanes held fixed {-fixed:+.4f}"
    return (
        f"OOD delta {seen.delta_now:.4f}, {_reference(seen)} {seen.delta_expected:.4f}: "
        f"drop {seen.delta.value:+.4f} (99 % CI {low:+.4f} to {high:+.4f}) over 24 h; "
        f"m_OOD {-seen.ood.value:+.4f}, m_ID {-seen.inside.value:+.4f}{mixture}; "
        f"n {seen.n_ood:,.0f} OOD, {seen.n_id:,.0f} ID{_lacks(seen)}"
    )


def level_text(seen: Comparison | None, alarms: Mapping[str, Change]) -> str:
    """Both means of 24 h, and since when the fast detector alarms on them."""
    drops = {name: one.ood if name == "ood" else one.inside for name, one in alarms.items()}
    fast = ", ".join(
        f"m_{name.upper()} {-drop:+.4f} since {clock(alarms[name].block)}" for name, drop in drops.items()
    )
    tail = f"; fast detector: {fast}" if fast else ""
    if seen is None:
        return f"{_NO_REFERENCE}{tail}"
    return (
        f"m_OOD {seen.mean_ood:.4f} ({-seen.ood.value:+.4f}), m_ID {seen.mean_id:.4f} "
        f"({-seen.inside.value:+.4f}) over 24 h against the {_reference(seen)}{tail}{_lacks(seen)}"
    )


def fast_text(change: Change) -> str:
    """The detector's estimate and where the change began."""
    evidence = f"{change.evidence:.1f} of {change.needed:.1f} (log)"
    if not change.alarms:
        return f"evidence for a drop {evidence}"
    return (
        f"OOD delta fell by {change.delta:.4f} +- {change.error:.4f} since {clock(change.block)}: "
        f"m_OOD {-change.ood:+.4f}, m_ID {-change.inside:+.4f}; evidence {evidence}"
    )


def comparison_values(seen: Comparison) -> Values:
    """The numbers of a comparison."""
    low, high = seen.delta.interval
    return finite(
        {
            "delta": seen.delta_now,
            "delta_expected": seen.delta_expected,
            "drop": seen.delta.value,
            "drop_error": seen.delta.error,
            "drop_low_99": low,
            "drop_high_99": high,
            "drop_recent": seen.delta.recent,
            "drop_fixed_mixture": seen.delta.standardised,
            "z_se": seen.delta.z,
            "change_ood": -seen.ood.value,
            "change_id": -seen.inside.value,
            "mean_ood": seen.mean_ood,
            "mean_id": seen.mean_id,
            "n_ood": round(seen.n_ood),
            "n_id": round(seen.n_id),
            "coverage": seen.coverage,
            "minutes": seen.minutes,
            "inflation": seen.inflation,
            "reference": seen.reference.kind,
        }
    )


def change_values(change: Change) -> Values:
    """The numbers of the fast detector."""
    return finite(
        {
            "evidence_log": change.evidence,
            "evidence_needed_log": change.needed,
            "drop": change.delta,
            "drop_error": change.error,
            "change_ood": -change.ood,
            "change_id": -change.inside,
            "changed_at_min": change.block * BLOCK_MIN,
        }
    )


def clock(block: int) -> str:
    """Start of a block, UTC."""
    minutes = block * BLOCK_MIN % (24 * 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d} UTC"


def finite(values: Mapping[str, float | int | str]) -> Values:
    """Rounded to six places; what is not known is left out."""
    rounded = {name: round(v, 6) if isinstance(v, float) else v for name, v in values.items()}
    return {name: v for name, v in rounded.items() if isinstance(v, str) or math.isfinite(v)}


def _reference(seen: Comparison) -> str:
    return "baseline" if seen.reference.kind == "baseline" else "24 h before"


def _lacks(seen: Comparison) -> str:
    return f"; cannot judge: {seen.lacks}" if seen.lacks else ""


def verdict(findings: Sequence[Finding], seen: Comparison | None) -> str:
    """One line about everything: the loudest first, and the delta with its interval."""
    firing = [one for one in findings if one.state == "firing" and not one.beside]
    for severity in ("page", "ticket"):
        for one in (one for one in firing if one.severity == severity):
            more = f" (and {len(firing) - 1} more)" if len(firing) > 1 else ""
            lane = f" in lane {one.lane}" if one.lane else ""
            where = f" of {one.model}{lane}" if one.model else ""
            return f"{severity.upper()} {one.rule}{where}: {one.summary}{more}"
    if seen is None:
        return f"CANNOT JUDGE YET: {delta_text(None)}"
    return f"{'CANNOT JUDGE' if seen.lacks else 'OK'}: {delta_text(seen)}"
