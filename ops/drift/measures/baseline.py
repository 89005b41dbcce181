"""A model's scores while it was well: learned from its first days, then frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ops.clock import BLOCKS_PER_DAY
from ops.drift.measures.statistics import ID, OOD, W2, Floats, Means, W, X, means

#: Day-to-day wander of the delta where too few days are known: a standard deviation.
TAU_DEFAULT, TAU_LEAST = 0.005, 0.0025
_DAYS_FOR_TAU = 5
#: Chi-square with two degrees of freedom at 0.999: a daily rhythm weaker than this is chance.
_RHYTHM_BEYOND = 13.8
_MAD_TO_SD = 1.4826


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference(Means):
    """Means that a window is compared with.

    Attributes:
        kind: "baseline", or "previous" for the 24 h before.
        first_block, blocks: Where it was taken.
        tau: How much the delta wanders from day to day beyond its error.
        rhythm: By slice, cosine and sine of the 24 h and of the 12 h wave, (2, 4).
        strata: By lane, weight OOD, weight ID, mean OOD, mean ID: for the standardised delta.
    """

    kind: str
    first_block: int
    blocks: int
    tau: float = TAU_DEFAULT
    rhythm: Floats = field(default_factory=lambda: np.zeros((2, 4)))
    strata: Mapping[str, list[float]] = field(default_factory=dict)

    @property
    def delta(self) -> float:  # type: ignore[override]
        """Mean OOD minus mean ID."""
        return float(self.mean[OOD] - self.mean[ID])

    def expected(self, first_block: int, blocks: int) -> Floats:
        """Mean by slice and block, (2, blocks), with the daily rhythm."""
        waves = rhythm(np.arange(first_block, first_block + blocks))
        return np.asarray(self.mean[:, None] + self.rhythm @ waves)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `stored.dumps`."""
        arrays = {name: np.array(v, dtype=np.float64) for name, v in stored.items() if isinstance(v, list)}
        return cls(**{**stored, **arrays})


def rhythm(blocks: NDArray[np.int64]) -> Floats:
    """Cosine and sine of the 24 h and 12 h waves at these blocks, (4, T); UTC."""
    angle = 2 * np.pi * (np.asarray(blocks) % BLOCKS_PER_DAY) / BLOCKS_PER_DAY
    return np.stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)])


def previous(sums: Floats, first_block: int) -> Reference:
    """A window as it is, to compare the next one with; (6, 2, T)."""
    return _reference("previous", sums, first_block, {}, np.zeros((2, 4)))


def learn(sums: Floats, first_block: int, lanes: Mapping[str, Floats] | None = None) -> Reference:
    """The baseline of a stretch without drift, a day or longer.

    A wave of 24 h or 12 h is kept in a slice's mean only where it is too strong for chance.

    Args:
        sums: Shape (6, 2, T).
        first_block: Number of the first block.
        lanes: The same by lane, when `sums` is all of them together.
    """
    waves = rhythm(np.arange(first_block, first_block + sums.shape[-1]))
    fitted = np.stack([_fit(sums, slice_, waves) for slice_ in (OOD, ID)])
    return _reference("baseline", sums, first_block, lanes or {}, fitted)


def _fit(sums: Floats, slice_: int, waves: Floats) -> Floats:
    """Four coefficients of one slice's waves, by weighted least squares; those of weak ones are zero."""
    w, x = sums[W, slice_], sums[X, slice_]
    if (w > 0).sum() < BLOCKS_PER_DAY // 2:
        return np.zeros(4)
    rows = np.vstack([np.ones_like(w), waves])
    full = _solve(rows, w, x)
    around = means(sums, full[1:] @ waves + np.zeros((2, 1)))
    # Each coefficient of a wave has twice the variance of the mean, for traffic that is even.
    chance = _RHYTHM_BEYOND * 2 * float(around.variance[slice_])
    strong = np.repeat((full[1:] ** 2).reshape(2, 2).sum(1) > chance, 2)
    kept, found = np.concatenate([[True], strong]), np.zeros(5)
    found[kept] = _solve(rows[kept], w, x)
    return found[1:]


def _solve(rows: Floats, w: Floats, x: Floats) -> Floats:
    """Coefficients c that minimise sum w (x / w - c . rows)**2."""
    found = np.linalg.lstsq((rows * w) @ rows.T, rows @ x, rcond=None)[0]
    return np.asarray(found, dtype=np.float64)


def _reference(
    kind: str, sums: Floats, first_block: int, lanes: Mapping[str, Floats], waves: Floats
) -> Reference:
    blocks = np.arange(first_block, first_block + sums.shape[-1])
    around = means(sums, waves @ rhythm(blocks))
    total, strata = sums[W].sum(-1), {}
    for lane, part in lanes.items():
        w, x = part[W].sum(-1), part[X].sum(-1)
        if w.all():
            strata[lane] = [*(w / total).tolist(), *(x / w).tolist()]
    return Reference(
        kind=kind,
        first_block=first_block,
        blocks=sums.shape[-1],
        **{name: getattr(around, name) for name in Means.__slots__},
        tau=_tau(sums),
        rhythm=waves,
        strata=strata,
    )


def _tau(sums: Floats) -> float:
    """Day-over-day standard deviation of the delta, robustly; includes the sampling of one day."""
    days = sums.shape[-1] // BLOCKS_PER_DAY
    if days < _DAYS_FOR_TAU:
        return TAU_DEFAULT
    whole = sums[..., : days * BLOCKS_PER_DAY].reshape(*sums.shape[:-1], days, BLOCKS_PER_DAY).sum(-1)
    if not (whole[W2] > 0).all():
        return TAU_DEFAULT
    by_slice = whole[X] / whole[W]
    changes = np.abs(np.diff(by_slice[OOD] - by_slice[ID]))
    return max(TAU_LEAST, _MAD_TO_SD * float(np.median(changes)) / math.sqrt(2))
