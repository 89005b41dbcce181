"""One series against its reference: everything that the rules go by, in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ops.drift.measures.baseline import Reference
from ops.drift.measures.statistics import ID, OOD, PREDICTIONS, Floats, N, W, X, means, recent
from ops.drift.settings import JudgeSettings

#: A lane takes part in the standardised delta with this many requests.
_STRATUM_MIN = 30
#: Share of the baseline's traffic that those lanes must have had.
_STRATA_COVERED = 0.8
#: Two-sided 99 % of a normal distribution.
Z_99 = 2.576


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """One mean of 24 h, and its distance below the reference; positive is worse.

    Attributes:
        now: The mean.    expected: By the reference.
        value: In cosine.    error: Standard error, reference and day-to-day wander included.
        recent: The same drop over the last hours only.
        standardised: What it would be with the baseline's mixture of lanes; NaN when unknown.
    """

    now: float
    expected: float
    value: float
    error: float
    recent: float
    standardised: float

    @property
    def z(self) -> float:
        """In standard errors."""
        return self.value / self.error if self.error > 0 else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """99 % confidence interval."""
        return self.value - Z_99 * self.error, self.value + Z_99 * self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """24 h of one series against a reference.

    Attributes:
        reference: What with.
        delta, ood, inside: The drops.
        recent_blocks: Length of the recent window.
        n_ood, n_id: Effective requests.
        coverage: Least share of sampled requests with a truth, by slice.
        minutes: Share of the window's minutes with data.
        inflation: Greater of the slices' variance inflations.
        lacks: Why the rules may not speak, or "".
    """

    reference: Reference
    delta: Drop
    ood: Drop
    inside: Drop
    recent_blocks: int
    n_ood: float
    n_id: float
    coverage: float
    minutes: float
    inflation: float
    lacks: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A day of one series.

    Attributes:
        first_block: Number of its first block.
        sums: Shape (6, 2, T).
        lanes: The same by lane, when `sums` is all of them; else empty.
        minutes: Share of its minutes with data.
    """

    first_block: int
    sums: Floats
    lanes: Mapping[str, Floats]
    minutes: float = 1.0


def compare(window: Window, reference: Reference, settings: JudgeSettings) -> Comparison:
    """The drops of a window against a reference, and whether there is enough to judge them."""
    sums = window.sums
    expected = reference.expected(window.first_block, sums.shape[-1])
    now = means(sums, expected)
    with np.errstate(invalid="ignore", divide="ignore"):
        raw = sums[X].sum(-1) / sums[W].sum(-1)
    last = recent(sums, expected, reference.noise, settings.recent_error)
    fixed = standardised(window.lanes, reference)
    wander = 2 * reference.tau**2
    variances = [*(now.variance + reference.variance), now.delta_variance + reference.delta_variance]
    ood, inside, delta = (
        Drop(
            now=float(mean),
            expected=float(mean - offset),
            value=-float(offset),
            error=math.sqrt(variance + wander),
            recent=-float(late),
            standardised=float(alike),
        )
        for mean, offset, late, alike, variance in zip(
            *([*each, each[OOD] - each[ID]] for each in (raw, now.mean, last.offset, fixed)),
            variances,
            strict=True,
        )
    )
    sampled, met = sums[PREDICTIONS].sum(-1), sums[N].sum(-1)
    coverage = float(min((met[s] / sampled[s] for s in (OOD, ID) if sampled[s]), default=0.0))
    return Comparison(
        reference=reference,
        delta=delta,
        ood=ood,
        inside=inside,
        recent_blocks=int(last.blocks),
        n_ood=float(now.n[OOD]),
        n_id=float(now.n[ID]),
        coverage=coverage,
        minutes=window.minutes,
        inflation=float(np.nanmax(now.inflation, initial=1.0)),
        lacks=_lacks(now.n, coverage, window.minutes, settings),
    )


def standardised(lanes: Mapping[str, Floats], reference: Reference) -> Floats:
    """Drops by slice with the baseline's mixture of lanes, (2,); NaN where too little is known.

    When the pooled mean falls and every lane's does not, only the mixture has changed.
    """
    drops, weights = np.zeros(2), np.zeros(2)
    for lane, (*shares, mean_ood, mean_id) in reference.strata.items():
        if lane not in lanes:
            continue
        n, w, x = (lanes[lane][stat].sum(-1) for stat in (N, W, X))
        for s, base in ((OOD, mean_ood), (ID, mean_id)):
            if n[s] >= _STRATUM_MIN:
                drops[s] += shares[s] * (base - x[s] / w[s])
                weights[s] += shares[s]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weights >= _STRATA_COVERED, drops / weights, np.nan)


def _lacks(n: Floats, coverage: float, minutes: float, settings: JudgeSettings) -> str:
    if n.min() < settings.requests_min:
        name = ("OOD", "ID")[int(n.argmin())]
        return f"{n.min():,.0f} effective {name} requests in 24 h, {settings.requests_min:,} are needed"
    if coverage < settings.coverage_min:
        return f"truths came for {coverage:.0%} of the samples, {settings.coverage_min:.0%} are needed"
    if minutes < settings.minutes_min:
        return f"{minutes:.0%} of the minutes have data, {settings.minutes_min:.0%} are needed"
    return ""
