"""Series for the plots: means by hour with bands, the detector's course, shares; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ops.clock import BLOCKS_PER_DAY
from ops.drift.measures.baseline import Reference
from ops.drift.measures.blocks import Traffic
from ops.drift.measures.detector import Detector
from ops.drift.measures.statistics import ID, OOD, PREDICTIONS, W2, Floats, N, W, X

HOUR = BLOCKS_PER_DAY // 24
SHOWN_HOURS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """Hour by hour; NaN where nothing was scored.

    Attributes:
        ago: Hours before now of each hour's middle, negative.
        mean: OOD, ID and delta, (3, H).
        error: Standard errors, (3, H); NaN without a reference.
        expected: By the reference, (3, H); NaN without one.
    """

    ago: Floats
    mean: Floats
    error: Floats
    expected: Floats


def hours_of(sums: Floats, first_block: int, reference: Reference | None) -> Hours:
    """The last 48 h, or as much as there is, of a series (6, 2, T) that starts at `first_block`."""
    h = min(SHOWN_HOURS, sums.shape[-1] // HOUR)
    cut = sums[..., sums.shape[-1] - h * HOUR :]
    by_hour = cut.reshape(6, 2, h, HOUR).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = by_hour[X] / by_hour[W]
        kish = by_hour[W] ** 2 / by_hour[W2]
    error, expected = np.full((3, h), np.nan), np.full((3, h), np.nan)
    if reference is not None:
        with np.errstate(invalid="ignore", divide="ignore"):
            rows = (reference.noise[:, :, None] / kish[None]).sum(1)
            # A mean out of distribution knows nothing of the other slice.
            own = reference.noise[[1, 2], [OOD, ID], None] / kish
        error = np.sqrt(np.stack([own[OOD], own[ID], rows[0]]))
        base = reference.expected(first_block + sums.shape[-1] - h * HOUR, h * HOUR)
        base = base.reshape(2, h, HOUR).mean(-1)
        expected = np.stack([base[OOD], base[ID], base[OOD] - base[ID]])
    ago = np.arange(-h, 0) + 0.5
    return Hours(ago=ago, mean=np.stack([*mean, mean[OOD] - mean[ID]]), error=error, expected=expected)


def week_before(sums: Floats) -> Floats:
    """Mean OOD, ID and delta of the same hours a week ago, (3, H), as far as `hours_of` goes.

    Blocks are kept for eight days, so that there is one for the last 24 h only; NaN elsewhere.
    """
    h = min(SHOWN_HOURS, sums.shape[-1] // HOUR)
    found = np.full((3, h), np.nan)
    past = sums[..., : max(sums.shape[-1] - 7 * BLOCKS_PER_DAY, 0)]
    known = min(h, past.shape[-1] // HOUR)
    if known:
        by_hour = past[..., past.shape[-1] - known * HOUR :].reshape(6, 2, known, HOUR).sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = by_hour[X] / by_hour[W]
        found[:, h - known :] = np.stack([*mean, mean[OOD] - mean[ID]])
    return found


def evidence_course(sums: Floats, first_block: int, reference: Reference) -> tuple[Floats, Floats]:
    """Hours ago and log M of (delta, OOD, ID), (3, T), had the detector begun 48 h ago."""
    t = min(SHOWN_HOURS * HOUR, sums.shape[-1])
    cut = sums[..., sums.shape[-1] - t :]
    first = first_block + sums.shape[-1] - t
    expected = reference.expected(first, t)
    state, course = Detector.fresh(first), np.full((3, t), np.nan)
    for at in range(t):
        state = state.step(cut[..., at], expected[..., at], reference.noise)
        course[:, at] = state.log_evidence
    return (np.arange(-t, 0) + 1) / HOUR, np.where(np.isfinite(course), course, np.nan)


def coverage_of(sums: Floats) -> Floats:
    """Share of the samples with a truth by hour, both slices, as far as `hours_of` goes."""
    h = min(SHOWN_HOURS, sums.shape[-1] // HOUR)
    by_hour = sums[..., sums.shape[-1] - h * HOUR :].reshape(6, 2, h, HOUR).sum((1, 3))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(by_hour[N] / by_hour[PREDICTIONS])


def share_of(traffic: Traffic, model: str) -> Floats:
    """Share of the samples that are OOD, by hour."""
    h = min(SHOWN_HOURS, len(traffic.blocks) // HOUR)
    found = np.full(h, np.nan)
    for i in range(h):
        end = traffic.end_block - (h - 1 - i) * HOUR
        shares = traffic.shares(model, end, HOUR)
        if sum(shares.values()):
            found[i] = shares.get("ood", 0) / sum(shares.values())
    return found


def counter_shares(
    counts: Mapping[int, Mapping[str, int]], end_block: int, bad: tuple[str, ...], of: tuple[str, ...]
) -> Floats:
    """By hour, growth of the counters `bad` over that of `of`; NaN where it is not known."""
    found = np.full(SHOWN_HOURS, np.nan)
    for i in range(SHOWN_HOURS):
        ends = [end_block - 1 - (SHOWN_HOURS - i - more) * HOUR for more in (0, 1)]
        then, now = (counts.get(end) for end in ends)
        if then is None or now is None:
            continue
        part, whole = (sum(now.get(n, 0) - then.get(n, 0) for n in names) for names in (bad, of))
        if whole > 0 and part >= 0:
            found[i] = part / whole
    return found
