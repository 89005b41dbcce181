"""The fast detector: a mixture of e-detectors (Shiryaev-Roberts) on D, m_OOD and m_ID.

For a drop d of a block's mean with variance s**2, L = d / s**2 * (y - d / 2) is the log likelihood
ratio, y being how far the block lies below the baseline. M = (1 + M) exp(L) sums the evidence over
every moment at which the drop may have begun. While the mean drop stays below d / 2 that is a
supermartingale minus the number of blocks, so that the mean number of blocks until the average of M
over the drops d passes A is at least A: the average run length. State is a few numbers.

Sources: Shin, Ramdas and Rinaldo, "E-detectors" (New England J. Statistics in Data Science, 2023,
arXiv 2203.03532); the statistic is Shiryaev's and Roberts'. The point of change is estimated by the
last zero of Page's CUSUM for d = 0.03 (Biometrika 41 (1954) 100). A Gaussian block mean is assumed,
which is why outliers are clipped and the variance is taken 10 % too large; docs/drift.md measures it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ops.clock import BLOCKS_PER_DAY
from ops.drift.measures.statistics import ID, OOD, W2, Floats, N, W, X

#: Drops that the mixture looks for. Below half of the least, which weekends and slow wander stay,
#: no evidence gathers.
DROPS = np.array([0.03, 0.06, 0.12])
#: What is watched, in order.
WATCHED = ("delta", "ood", "id")
_CUSUM = 0  # index of the drop whose CUSUM dates the change
_CLIP_SE = 5.0
_VARIANCE_MARGIN = 1.1
#: A block is judged with this many requests in each slice, or after an hour with a few.
_ENOUGH, _FEW, _WAIT_BLOCKS = 10, 3, 12
#: No alarm needs more; what is beyond would only have to be outlived after a recovery.
_ENOUGH_EVIDENCE = 30.0
_KEPT = (N, W, W2, X)
_n, _w, _w2, _x = range(4)


def evidence_needed(pages_per_year: float, detectors: int) -> float:
    """Natural logarithm of A: blocks of a year times detectors, over the false alarms allowed."""
    return math.log(BLOCKS_PER_DAY * 365 * max(detectors, 1) / pages_per_year)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """State of many series at once, as leading axes; of one without.

    Attributes:
        next_block: The block that is to be consumed next.
        evidence: log M by watched mean and drop, (..., 3, 3); -inf at first.
        carried: Sums of blocks too small to be judged alone, (..., 4, 2): n, w, w2, and w times the
            offset from the baseline.
        waited: Blocks in `carried`, (...).
        cusum: (..., 3).    since: Block at which each CUSUM last left zero, (..., 3).
        run: Sums since then, (..., 3, 4, 2).
    """

    next_block: int
    evidence: Floats
    carried: Floats
    waited: NDArray[np.int64]
    cusum: Floats
    since: NDArray[np.int64]
    run: Floats

    @classmethod
    def fresh(cls, next_block: int, shape: tuple[int, ...] = ()) -> Self:
        """Without evidence."""
        return cls(
            next_block=next_block,
            evidence=np.full((*shape, 3, len(DROPS)), -np.inf),
            carried=np.zeros((*shape, 4, 2)),
            waited=np.zeros(shape, dtype=np.int64),
            cusum=np.zeros((*shape, 3)),
            since=np.full((*shape, 3), next_block, dtype=np.int64),
            run=np.zeros((*shape, 3, 4, 2)),
        )

    @property
    def log_evidence(self) -> Floats:
        """log of the average of M over the drops, (..., 3)."""
        return np.asarray(np.logaddexp.reduce(self.evidence, axis=-1) - math.log(len(DROPS)))

    def drops(self) -> Floats:
        """Estimated drops of (D, m_OOD, m_ID) since each mean's point of change, (..., 3, 3).

        Axis -2 is the mean whose change dates it, axis -1 the estimate.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            offset = self.run[..., _x, :] / self.run[..., _w, :]
        return -_watched(offset)

    def errors(self, noise: Floats) -> Floats:
        """Standard errors of `drops`, same shape; `noise` as for `step`."""
        with np.errstate(invalid="ignore", divide="ignore"):
            kish = self.run[..., _w, :] ** 2 / self.run[..., _w2, :]
            by_slice = noise[..., None, :, :] / kish[..., None, :]
        # A slice that an estimate does not use may be empty.
        used = np.where(noise[..., None, :, :] > 0, by_slice, 0)
        return np.asarray(np.sqrt(used.sum(-1)))

    def step(self, block: Floats, expected: Floats, noise: Floats) -> Self:
        """Consumes the next block.

        Args:
            block: Its sums, (..., 6, 2).
            expected: Baseline means at that hour, (..., 2).
            noise: Variance that one request adds to what is watched, (..., 3, 2): `Reference.noise`.
        """
        taken = block[..., _KEPT, :].copy()
        taken[..., _x, :] -= taken[..., _w, :] * expected
        carried, waited = self.carried + taken, self.waited + 1
        n = carried[..., _n, :].min(-1)
        ready = (n >= _ENOUGH) | ((waited >= _WAIT_BLOCKS) & (n >= _FEW))
        with np.errstate(invalid="ignore", divide="ignore"):
            gain = _log_ratios(carried, noise)
            evidence = np.minimum(np.logaddexp(0, self.evidence) + gain, _ENOUGH_EVIDENCE)
        cusum = np.minimum(np.maximum(self.cusum, 0) + gain[..., _CUSUM], _ENOUGH_EVIDENCE)
        risen = cusum > 0
        run = np.where(risen[..., None, None], self.run + carried[..., None, :, :], 0.0)
        first = np.where(self.cusum > 0, self.since, self.next_block - waited[..., None] + 1)
        since = np.where(risen, first, self.next_block + 1)
        one, two = ready[..., None], ready[..., None, None]
        return type(self)(
            next_block=self.next_block + 1,
            evidence=np.where(two, evidence, self.evidence),
            carried=np.where(two, 0.0, carried),
            waited=np.where(ready, 0, waited),
            cusum=np.where(one, cusum, self.cusum),
            since=np.where(one, since, self.since),
            run=np.where(two[..., None], run, self.run),
        )

    def consume(self, first: int, sums: Floats, expected: Floats, noise: Floats) -> Self:
        """Steps through those blocks of `sums` that were not consumed yet, in order, each once.

        Args:
            first: Number of the first block in `sums`.
            sums: Shape (6, 2, T).    expected: (2, T).    noise: (3, 2).
        """
        state = self
        for number in range(max(self.next_block, first), first + sums.shape[-1]):
            at = number - first
            if state.next_block < number:  # these are gone for good
                state = replace(state, next_block=number)
            state = state.step(sums[..., at], expected[..., at], noise)
        return state

    def pick(self, series: int) -> Self:
        """One of many series."""
        names = ("evidence", "carried", "waited", "cusum", "since", "run")
        return replace(self, **{name: getattr(self, name)[series] for name in names})

    def without(self, rows: Sequence[int], *series: int) -> Self:
        """Returns the detector without evidence on some watched means: their incident is over.

        Args:
            rows: Of the watched means.
            series: Which one of many; nothing for a detector of one.
        """
        fresh, kept, index = type(self).fresh(self.next_block, self.waited.shape), {}, (*series, list(rows))
        for name in ("evidence", "cusum", "since", "run"):
            kept[name] = getattr(self, name).copy()
            kept[name][index] = getattr(fresh, name)[index]
        return replace(self, **kept)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `stored.dumps`, to the last bit; no evidence is -inf, and stored as null."""
        kinds: dict[str, Any] = {"waited": np.int64, "since": np.int64}
        arrays: dict[str, Any] = {
            name: np.array(values, dtype=kinds.get(name, np.float64))
            for name, values in stored.items()
            if name != "next_block"
        }
        arrays["evidence"] = np.where(np.isnan(arrays["evidence"]), -np.inf, arrays["evidence"])
        return cls(next_block=int(stored["next_block"]), **arrays)


def _log_ratios(carried: Floats, noise: Floats) -> Floats:
    """log L by watched mean and drop, (..., 3, 3)."""
    offset = carried[..., _x, :] / carried[..., _w, :]
    kish = carried[..., _w, :] ** 2 / carried[..., _w2, :]
    variance = _VARIANCE_MARGIN * (noise / kish[..., None, :]).sum(-1)[..., None]
    # A mean known so well that a drop is more than the clip would be cut off below half of that drop: no
    # evidence could gather, and of scores that are all alike there would be none to divide by.
    variance = np.maximum(variance, (DROPS / _CLIP_SE) ** 2)
    below = np.minimum(-_watched(offset)[..., None], _CLIP_SE * np.sqrt(variance))
    return np.asarray(DROPS / variance * (below - DROPS / 2))


def _watched(by_slice: Floats) -> Floats:
    """(..., 2) -> (..., 3): delta, OOD, ID."""
    ood, inside = by_slice[..., OOD], by_slice[..., ID]
    return np.stack([ood - inside, ood, inside], axis=-1)
