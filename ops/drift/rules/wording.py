"""The wording of the drift rules' findings: one line for a person, and the numbers behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ops.clock import BLOCK_MIN
from ops.drift.measures.comparison import Comparison
from ops.drift.rules.verdicts import Change
from ops.findings import Finding

Values = dict[str, float | int | str]


def delta_text(seen: Comparison | None) -> str:
    """The delta of 24 h, its drop with a 99 % interval, and what it is made of."""
    if seen is None:
        return "no baseline yet, and no two whole days to compare"
    low, high = seen.delta.interval
    return (
        f"OOD delta {seen.delta_now:.4f}, {_reference(seen)} {seen.delta_expected:.4f}: "
        f"drop {seen.delta.value:+.4f} (99 % CI {low:+.4f} to {high:+.4f}) over 24 h; {parts(seen)}; "
        f"n {seen.n_ood:,.0f} OOD, {seen.n_id:,.0f} ID{_lacks(seen)}"
    )


def parts(seen: Comparison) -> str:
    """The decomposition of the change: dD = dm_OOD - dm_ID."""
    text = f"m_OOD {-seen.ood.value:+.4f}, m_ID {-seen.inside.value:+.4f}"
    fixed = seen.delta.standardised
    return text if math.isnan(fixed) else f"{text}; with the mixture of lanes held fixed {-fixed:+.4f}"


def level_text(seen: Comparison | None, changes: Mapping[str, Change]) -> str:
    """Both means of 24 h; what the fast detector says of them when it alarms."""
    fast = [
        f"{name} {-value:+.4f} since {clock(change.block)}"
        for name, change, value in _means(changes)
        if change.alarms
    ]
    tail = f"; fast detector: {', '.join(fast)}" if fast else ""
    if seen is None:
        return f"no baseline yet, and no two whole days to compare{tail}"
    return (
        f"m_OOD {seen.mean_ood:.4f} ({-seen.ood.value:+.4f}), m_ID {seen.mean_id:.4f} "
        f"({-seen.inside.value:+.4f}) over 24 h against the {_reference(seen)}{tail}{_lacks(seen)}"
    )


def fast_text(change: Change) -> str:
    """The detector's estimate and where the change began."""
    if not change.alarms:
        return f"evidence for a drop {change.evidence:.1f} of {change.needed:.1f} (log)"
    return (
        f"OOD delta fell by {change.delta:.4f} +- {change.error:.4f} since {clock(change.block)}: "
        f"m_OOD {-change.ood:+.4f}, m_ID {-change.inside:+.4f}; "
        f"evidence {change.evidence:.1f} of {change.needed:.1f} (log)"
    )


def comparison_values(seen: Comparison) -> Values:
    """The numbers of a comparison."""
    low, high = seen.delta.interval
    return _finite(
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
    return _finite(
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


def level_values(seen: Comparison | None, changes: Mapping[str, Change], u: float) -> Values:
    """Returns the values of the 24 h, and of both means since a change that the fast detector saw."""
    values = comparison_values(seen) | {"u_se": round(u, 2)} if seen else {}
    alarming = [change for name, change, _ in _means(changes) if change.alarms]
    if alarming:
        newest = max(alarming, key=lambda change: change.block)
        since = {"change_ood_since": -newest.ood, "change_id_since": -newest.inside}
        values |= _finite({**since, "changed_at_min": newest.block * BLOCK_MIN})
    return values


def clock(block: int) -> str:
    """Start of a block, UTC."""
    minutes = block * BLOCK_MIN % (24 * 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d} UTC"


def _means(changes: Mapping[str, Change]) -> list[tuple[str, Change, float]]:
    if not changes:
        return []
    ood, inside = changes["ood"], changes["id"]
    return [("m_OOD", ood, ood.ood), ("m_ID", inside, inside.inside)]


def _reference(seen: Comparison) -> str:
    return "baseline" if seen.reference.kind == "baseline" else "24 h before"


def _lacks(seen: Comparison) -> str:
    return f"; cannot judge: {seen.lacks}" if seen.lacks else ""


def _finite(values: Mapping[str, float | int | str]) -> Values:
    """Rounded to six places; what is not known is left out."""
    known: Values = {}
    for name, value in values.items():
        if isinstance(value, float):
            if math.isfinite(value):
                known[name] = round(value, 6)
        else:
            known[name] = value
    return known


def verdict(findings: Sequence[Finding], seen: Comparison | None) -> str:
    """One line about everything: the loudest first, and the delta with its interval."""
    firing = [one for one in findings if one.state == "firing" and not one.beside]
    for severity in ("page", "ticket"):
        loud = [one for one in firing if one.severity == severity]
        if loud:
            more = f" (and {len(firing) - 1} more)" if len(firing) > 1 else ""
            return f"{severity.upper()} {loud[0].rule}{_where(loud[0])}: {loud[0].summary}{more}"
    if seen is None:
        return f"CANNOT JUDGE YET: {delta_text(None)}"
    return f"{'CANNOT JUDGE' if seen.lacks else 'OK'}: {delta_text(seen)}"


def _where(finding: Finding) -> str:
    lane = f" in lane {finding.lane}" if finding.lane else ""
    return f" of {finding.model}{lane}" if finding.model else ""
