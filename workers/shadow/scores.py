"""From a prediction and its truth to integers: halves, scores and the fields of a minute's hash.

Everything is scored in float16 values and summed in integers, and this makes the result the same
whatever comes first and whoever computes it. The products of two float16 numbers below one are
multiples of 2**-48, so a 768-term dot product of unit vectors fits the 53 bits of float64 exactly:
the order of the additions cannot matter. Rounding to float16 moves one cosine by about 1e-5.

A field is `<model>|<lane>|<slice>|<target>|<stat>`, and its value an integer; docs/drift-data.md lists
them. Some are added when a prediction arrives (`arrivals`), the others when it meets its truth
(`increments`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

MILLION = 1_000_000
BINS = 200
#: Scores against the truth, in the order of `_against`.
COSINES = ("amn", "mean", "last", "fallback")
#: Targets of a comparison: the true vector, a stronger model's answer, the nearest reference. The
#: fourth is none: sums over the inputs alone.
TARGET_TRUE, TARGET_MODEL, TARGET_REFERENCE, TARGET_INPUT = "true", "model", "reference", "input"
#: Lane and slice of histograms that are kept over all of them.
ALL = "all"
SCORE_BINS = 100

_ROW = np.dtype("<f2")
_ROW_BYTES = 768 * 2
#: Rows of a prediction half: five of the context, the prediction, and perhaps the fallback's.
_CONTEXT, _AMN, _FALLBACK = 5, 5, 6
_ROWS = {"truth": (1,), "prediction": (_AMN + 1, _FALLBACK + 1)}

Pairs = list[tuple[str, int]]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels by which sums are kept apart."""

    model: str
    lane: str
    slice: str
    target: str = TARGET_TRUE

    def __str__(self) -> str:
        return "|".join(_escaped(part) for part in (self.model, self.lane, self.slice, self.target))

    def field(self, stat: str) -> str:
        """The field of one statistic."""
        return f"{self}|{stat}"

    @classmethod
    def parse(cls, field: str) -> tuple[Self, str]:
        """The inverse of `field`.

        Raises:
            ValueError: Not a field of a minute's hash.
        """
        *labels, stat = field.split("|")
        if len(labels) != 4:
            raise ValueError(
                f"drift field {field!r} does not have the five parts model|lane|slice|target|stat"
            )
        return cls(*(part.replace("%7C", "|").replace("%25", "%") for part in labels)), stat


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """A prediction or a truth, as it waits for the other.

    Attributes:
        kind: "prediction" or "truth". Of a truth, all but `data` is as it is here.
        data: Float16 rows of 768: the truth; or the context, AMN's prediction and, when a fallback
            was run, its prediction.
        labels: The text of its `Labels`.
        coherence, ood: In millionths; -1 for no OOD score.
        minute: The epoch minute of its stream entry: the event's time.
        weight: k of the rate 1/k at which it was sampled.
    """

    kind: str
    data: bytes
    labels: str = ""
    coherence: int = 0
    minute: int = 0
    weight: int = 1
    ood: int = -1

    @property
    def head(self) -> str:
        """Everything but `kind` and `data`, as text for the waiting hash."""
        return f"{self.minute}|{self.coherence}|{self.weight}|{self.ood}|{self.labels}"

    @property
    def rows(self) -> NDArray[np.float16]:
        """`data` as (N, 768)."""
        return np.frombuffer(self.data, dtype=_ROW).reshape(-1, 768)

    @classmethod
    def parse(cls, kind: str, head: str, data: bytes) -> Self:
        """Reads what `head` and `data` hold.

        Raises:
            ValueError: Stored by something else.
        """
        *numbers, labels = head.split("|", 4)
        if len(data) not in [rows * _ROW_BYTES for rows in _ROWS.get(kind, ())]:
            raise ValueError(f"waiting half of kind {kind!r} with {len(data)} bytes is not one of ours")
        minute, coherence, weight, ood = map(int, numbers)
        fields = {"coherence": coherence, "minute": minute, "weight": weight, "ood": ood}
        return cls(kind=kind, data=data, labels=labels, **fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """Facts about a sampled request that need no truth.

    Attributes:
        weight: k of the rate 1/k at which it was sampled.
        slow: Whether AMN missed its latency objective.
        reference: Cosine of the prediction to the nearest reference; None when the bank was not asked.
        ood: OOD score of the input; None without a scorer.    cell: Its nearest centroid.
    """

    weight: int = 1
    slow: bool = False
    reference: float | None = None
    ood: float | None = None
    cell: int = 0


def minute_of(entry_id: bytes) -> int:
    """Epoch minute of a stream entry, by the server's clock."""
    return int(entry_id.partition(b"-")[0]) // 60_000


def truth_half(vector: NDArray[np.floating]) -> Half:
    """The half that a (768,) true next vector makes."""
    return Half(kind="truth", data=vector.astype(_ROW).tobytes())


def prediction_half(
    entry_id: bytes,
    labels: Labels,
    context: NDArray[np.float32],
    amn: NDArray[np.float32],
    fallback: NDArray[np.float32] | None,
    arrival: Arrival | None = None,
) -> Half:
    """The half that a sampled request makes.

    Args:
        entry_id: Of the shadow stream; gives the event's minute.
        labels: Where its sums go.
        context, amn: Shapes (5, 768), oldest first, and (768,): the prediction that was served.
        fallback: Shape (768,), the fallback's, when one was run.
        arrival: Weight and OOD score are kept for when the truth comes.
    """
    arrival = arrival or Arrival()
    rows = np.asarray([*context, amn, *([] if fallback is None else [fallback])], dtype=_ROW)
    neighbours = rows[:_CONTEXT].astype(np.float64)
    return Half(
        kind="prediction",
        data=rows.tobytes(),
        labels=str(labels),
        coherence=millionths(float(cosines(neighbours[:-1], neighbours[1:]).mean())),
        minute=minute_of(entry_id),
        weight=arrival.weight,
        ood=-1 if arrival.ood is None else millionths(arrival.ood),
    )


def arrivals(half: Half, labels: Labels, arrival: Arrival) -> Pairs:
    """Fields and amounts that a prediction adds to its minute, whether or not its truth comes."""
    weight = arrival.weight
    stats = [("predictions", 1), ("predictions.wsum", weight), *([("slow", 1)] if arrival.slow else [])]
    pairs = _of(labels, stats)
    rows = half.rows.astype(np.float64)
    if len(rows) > _FALLBACK:
        value = millionths(cosines(rows[_AMN : _AMN + 1], rows[_FALLBACK:])[0])
        pairs += _of(replace(labels, target=TARGET_MODEL), judged(value, weight))
    if arrival.reference is not None:
        nearest = judged(millionths(min(arrival.reference, 1.0)), weight)
        pairs += _of(replace(labels, target=TARGET_REFERENCE), nearest)
    if arrival.ood is not None:
        stats = [("n", 1), ("w.sum", weight), *_moments("ood", half.ood)]
        pairs += _of(replace(labels, target=TARGET_INPUT), stats)
        bin_ = min(max(half.ood, 0) * SCORE_BINS // MILLION, SCORE_BINS - 1)
        everywhere = Labels(labels.model, ALL, ALL, TARGET_INPUT)
        pairs += _of(everywhere, [(f"c{arrival.cell}", weight), (f"s{bin_}", weight)])
    return pairs


def increments(prediction: Half, truth: Half) -> Pairs:
    """Fields and amounts that one matched pair adds to its minute (`arrivals` apart)."""
    values = dict(zip(COSINES, against(prediction, truth), strict=False))
    stats = judged(values.pop("amn"), prediction.weight)
    if "fallback" in values:
        stats.append(("fallback.n", 1))
    for name, value in {**values, "coherence": prediction.coherence}.items():
        stats += _moments(name, value)
    return _of(prediction.labels, stats)


def against(prediction: Half, truth: Half) -> list[int]:
    """Cosines of a pair in the order of `COSINES`, in millionths; the last one only with a fallback."""
    rows = prediction.rows.astype(np.float64)
    context = rows[:_CONTEXT]
    # The sum stands for the mean: it is exact, and the cosine is the same.
    scored = np.stack([rows[_AMN], context.sum(axis=0), context[-1], *rows[_FALLBACK:]])
    return [millionths(value) for value in cosines(scored, truth.rows.astype(np.float64)).tolist()]


def judged(value: int, weight: int) -> Pairs:
    """Fields and amounts of one cosine of AMN, weighted and not."""
    square = _square(value)
    return [
        ("n", 1),
        ("w.sum", weight),
        ("w.squares", weight * weight),
        ("amn.sum", value),
        ("amn.squares", square),
        ("amn.wsum", weight * value),
        ("amn.wsquares", weight * square),
        (f"h{min((value + MILLION) // (2 * MILLION // BINS), BINS - 1)}", 1),
    ]


def cosines(a: Doubles, b: Doubles) -> Doubles:
    """Row-wise cosines, (N, 768) with (N or 1, 768) -> (N,); 0 where a row is zero."""
    norms = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    dots = (a * b).sum(axis=1)
    values: Doubles = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    return values.clip(-1, 1)


def millionths(value: float) -> int:
    """Fixed point, six places."""
    return round(value * MILLION)


def _moments(name: str, value: int) -> Pairs:
    return [(f"{name}.sum", value), (f"{name}.squares", _square(value))]


def _square(value: int) -> int:
    return (value * value + MILLION // 2) // MILLION


def _of(labels: Labels | str, stats: Pairs) -> Pairs:
    text = str(labels)
    return [(f"{text}|{stat}", amount) for stat, amount in stats]


def _escaped(part: str) -> str:
    return part.replace("%", "%25").replace("|", "%7C")
