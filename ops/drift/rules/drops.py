"""The conditions of the drift rules on one comparison, or on what the fast detector saw. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ops.drift.latch import Fires
from ops.drift.measures.baseline import Reference
from ops.drift.measures.comparison import Comparison, Drop, standardised
from ops.drift.measures.detector import WATCHED, Detector, evidence_needed
from ops.drift.measures.statistics import Floats, threshold
from ops.drift.settings import JudgeSettings

PAGE: Fires = "page"
TICKET: Fires = "ticket"
REST: Fires = ""
#: How the rules share the false pages of a year; `level` spends half of its own on each of its ways.
_SHARES = {"fast_drop": 1 / 2, "ood_delta": 1 / 4, "level": 1 / 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """The thresholds of the rules, so that all of them together keep to the false pages of a year.

    Attributes:
        delta_se, level_se: Standard errors, for the 24 h rules.
        fast_delta, fast_level: log A, for the fast detector on the delta and on a mean.
    """

    delta_se: float
    level_se: float
    fast_delta: float
    fast_level: float


def bars(pages_per_year: float, series: int, detectors: int, *, previous_window: bool = False) -> Bars:
    """The bars for so many judged series (lanes, and all of them) and series with a detector."""
    share = {rule: pages_per_year * part for rule, part in _SHARES.items()}
    each = share["level"] / 2
    return Bars(
        delta_se=threshold(share["ood_delta"], series, previous_window=previous_window),
        level_se=threshold(each, 2 * series, previous_window=previous_window),
        fast_delta=evidence_needed(share["fast_drop"], detectors),
        fast_level=evidence_needed(each, 2 * detectors),
    )


def delta_fires(seen: Comparison, u: float, settings: JudgeSettings) -> Fires:
    """`ood_delta`: the card's rule on 24 h, with what keeps it from crying wolf.

    A page needs the drop, its size in standard errors, that it lasts, that the mean out of
    distribution fell (a better mean in distribution is no alarm), and that it is no mere change of
    the mixture of lanes. A drop that lacks one of the last three, or is less sure, is a ticket.
    """
    fell = _fell(seen.ood.value, seen.delta.value, settings)
    return REST if seen.lacks else _day(seen.delta, settings.drop_page, u, settings, fell)


def delta_lasts(seen: Comparison, settings: JudgeSettings) -> bool:
    """Says whether the delta is still low in the last hours."""
    return _lasts(seen.delta, settings.drop_page, settings)


def level_fires(seen: Comparison, u: float, settings: JudgeSettings) -> Fires:
    """`level`: a mean itself fell over 24 h, whatever the delta did."""
    inside = _day(seen.inside, settings.drop_page, u, settings)
    return REST if seen.lacks else loudest(inside, _day(seen.ood, settings.level_ood_page, u, settings))


def level_lasts(seen: Comparison, settings: JudgeSettings) -> bool:
    """Says whether either mean is still low in the last hours."""
    inside = _lasts(seen.inside, settings.drop_page, settings)
    return inside or _lasts(seen.ood, settings.level_ood_page, settings)


def loudest(*fires: Fires) -> Fires:
    """The loudest of these."""
    return next((one for one in (PAGE, TICKET) if one in fires), REST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The change that the fast detector sees in one watched mean.

    Attributes:
        evidence: log M.    needed: log A.    alarms: Says whether the evidence is enough.
        block: Where the change began, as estimated.
        delta, ood, inside: Estimated drops since then.
        error: Standard error of the watched one.    ood_error: Of m_OOD.
        standardised: Drop of the watched one with the baseline's mixture of lanes; NaN when unknown.
    """

    evidence: float
    needed: float
    block: int
    delta: float
    ood: float
    inside: float
    error: float
    ood_error: float
    standardised: float
    alarms: bool


def changes(
    detector: Detector, reference: Reference, bar: Bars, lanes: Mapping[str, Floats], first_block: int
) -> dict[str, Change]:
    """The change of each watched mean. `lanes` are sums (6, 2, T) from `first_block` on, or empty."""
    drops, errors, evidence = detector.drops(), detector.errors(reference.noise), detector.log_evidence
    found = {}
    for i, name in enumerate(WATCHED):
        block, needed = int(detector.since[i]), bar.fast_delta if name == "delta" else bar.fast_level
        part = {lane: sums[..., max(block - first_block, 0) :] for lane, sums in lanes.items()}
        ood, inside = standardised(part, reference) if part else (math.nan, math.nan)
        found[name] = Change(
            evidence=float(evidence[i]),
            needed=needed,
            alarms=bool(evidence[i] >= needed),
            block=block,
            delta=float(drops[i, 0]),
            ood=float(drops[i, 1]),
            inside=float(drops[i, 2]),
            error=float(errors[i, i]),
            ood_error=float(errors[i, 1]),
            standardised=float((ood - inside, ood, inside)[i]),
        )
    return found


def fast_fires(change: Change, settings: JudgeSettings) -> Fires:
    """`fast_drop`: the detector's alarm on the delta, a ticket where it was not m_OOD that fell."""
    # After a few blocks m_OOD may seem to have fallen when it was m_ID that rose.
    fell = _fell(change.ood, change.delta, settings) and change.ood >= 3 * change.ood_error
    found = _alarm(change, change.delta, settings.drop_page)
    return TICKET if found and not fell else found


def fast_level_fires(found: Mapping[str, Change], settings: JudgeSettings) -> Fires:
    """`level`, by the detector's alarms on the two means; an OOD mean that fell alone is the delta's."""
    inside, ood = found["id"], found["ood"]
    alone = ood.inside < ood.ood / 2
    if _alarm(ood, ood.ood, settings.level_ood_page) == PAGE and not alone:
        return PAGE
    return _alarm(inside, inside.inside, settings.drop_page)


def _day(drop: Drop, least: float, u: float, settings: JudgeSettings, fell: bool = True) -> Fires:
    if drop.value < least or not _lasts(drop, least, settings):
        return REST
    if drop.z >= u and fell and not _only_mixture(drop.standardised, drop.value):
        return PAGE
    return TICKET if drop.z >= settings.ticket_se else REST


def _alarm(change: Change, drop: float, least: float) -> Fires:
    """The run length keeps false alarms rare; here only the size is asked for.

    A drop that may well be `least`, by two standard errors, is a page; one that is surely less a ticket.
    """
    if not change.alarms:
        return REST
    large = drop + 2 * change.error >= least
    return PAGE if large and not _only_mixture(change.standardised, drop) else TICKET


def _fell(ood: float, delta: float, settings: JudgeSettings) -> bool:
    """Says whether it is m_OOD that fell: enough, and at least half of what the delta did."""
    return ood >= max(settings.share_lasting * settings.drop_page, delta / 2)


def _lasts(drop: Drop, least: float, settings: JudgeSettings) -> bool:
    return drop.recent >= settings.share_lasting * least


def _only_mixture(fixed: float, value: float) -> bool:
    """Says whether less than two thirds of the drop is left once the mixture of lanes is held fixed."""
    return not math.isnan(fixed) and fixed < value * 2 / 3
