"""From minutes of integer sums to means by slice and the OOD delta; pure, no server, no clock.

Sums are additive: any window is the sum of its minutes, in any order, and late data needs nothing.
The standard errors here take requests as independent. Neighbours of one document are not, so they
are too small by a factor that is a matter of the traffic; a judge that pages needs more than this.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from workers.shadow.scores import MILLION, SCORES, TARGET_TRUE, Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One score over a window.

    Attributes:
        n: Requests.
        mean: NaN when there are none.
        sd: Sample standard deviation; NaN for fewer than two.
    """

    n: int
    mean: float
    sd: float

    @property
    def variance_of_mean(self) -> float:
        """The variance of the mean of independent requests."""
        return self.sd**2 / self.n if self.n else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceSummary:
    """One slice of one model's traffic.

    Attributes:
        predictions: Sampled requests.
        n: Of those, the ones that met their truth.
        scores: By name (amn, mean, last, fallback, coherence).
    """

    predictions: int
    n: int
    scores: Mapping[str, Score]

    @property
    def coverage(self) -> float:
        """Share of sampled requests whose truth came; NaN without any."""
        return self.n / self.predictions if self.predictions else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """AMN's mean cosine out of distribution minus in distribution.

    Attributes:
        value: m_ood - m_id.
        standard_error: As of independent requests; NaN when a slice has fewer than two.
        n_ood, n_id: Requests behind it.
    """

    value: float
    standard_error: float
    n_ood: int
    n_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """The measurements of the shadow worker for one model.

    Attributes:
        model: Model id.
        slices: By name: "id", "ood", "unknown".
        lanes: The same by lane, for attribution.
        ood_delta: None as long as a slice has no scored request: no data is not a delta of 0.
    """

    model: str
    slices: Mapping[str, SliceSummary]
    lanes: Mapping[str, Mapping[str, SliceSummary]]
    ood_delta: Delta | None


def total(minutes: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sums of a window: its minutes added up, field by field."""
    sums: defaultdict[str, int] = defaultdict(int)
    for minute in minutes:
        for field, amount in minute.items():
            sums[field] += amount
    return dict(sums)


def summary(sums: Mapping[str, int], tier: str = TARGET_TRUE) -> dict[str, ModelSummary]:
    """Means, deviations and OOD delta by model.

    Args:
        sums: Of a window: `total(minutes)`, or `ops.drift.kept.store.read_window`.
        tier: What stands for the truth; tiers are never added together.
    """
    # model -> lane ("" for all of them) -> slice -> stat -> sum
    grouped: dict[str, dict[str, dict[str, defaultdict[str, int]]]] = {}
    for field, amount in sums.items():
        try:
            labels, stat = Labels.parse(field)
        except ValueError:
            continue  # of a later version; what is known is still right
        if labels.target != tier:
            continue
        for lane in ("", labels.lane):
            slices = grouped.setdefault(labels.model, {}).setdefault(lane, {})
            slices.setdefault(labels.slice, defaultdict(int))[stat] += amount
    return {model: _model(model, lanes) for model, lanes in grouped.items()}


def ood_delta(slices: Mapping[str, SliceSummary], score: str = "amn") -> Delta | None:
    """The delta of one score between the slices, or None when one of them is empty."""
    if not all(name in slices and slices[name].n for name in ("ood", "id")):
        return None
    ood, inside = slices["ood"].scores[score], slices["id"].scores[score]
    return Delta(
        value=ood.mean - inside.mean,
        standard_error=math.sqrt(ood.variance_of_mean + inside.variance_of_mean),
        n_ood=ood.n,
        n_id=inside.n,
    )


def _model(model: str, lanes: Mapping[str, Mapping[str, Mapping[str, int]]]) -> ModelSummary:
    each = {
        lane: {name: _slice(stats) for name, stats in sorted(slices.items())}
        for lane, slices in sorted(lanes.items())
    }
    slices = each.pop("")
    return ModelSummary(model=model, slices=slices, lanes=each, ood_delta=ood_delta(slices))


def _slice(stats: Mapping[str, int]) -> SliceSummary:
    n = stats.get("n", 0)
    counts = {score: stats.get("fallback.n", 0) if score == "fallback" else n for score in SCORES}
    scores = {
        score: _score(counts[score], stats.get(f"{score}.sum", 0), stats.get(f"{score}.squares", 0))
        for score in SCORES
    }
    return SliceSummary(predictions=stats.get("predictions", 0), n=n, scores=scores)


def _score(n: int, millionths: int, squares: int) -> Score:
    mean = millionths / MILLION / n if n else math.nan
    # The difference is taken in integers: the two terms are nearly equal for a steady score.
    spread = n * squares * MILLION - millionths**2  # n**2 * variance, in millionths squared
    sd = math.sqrt(max(spread, 0) / (n * (n - 1))) / MILLION if n > 1 else math.nan
    return Score(n=n, mean=mean, sd=sd)
