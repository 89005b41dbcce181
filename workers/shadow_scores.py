"""From a prediction and its truth to integers: halves, scores and the fields of a minute's hash.

Everything is scored in float16 values and summed in integers, and this makes the result the same
whatever comes first and whoever computes it. The products of two float16 numbers below one are
multiples of 2**-48, so a 768-term dot product of unit vectors fits the 53 bits of float64 exactly:
the order of the additions cannot matter. Rounding to float16 moves one cosine by about 1e-5.

A field is `<model>|<lane>|<slice>|<tier>|<stat>`, and its value an integer:

    predictions                   sampled requests of that minute (coverage = n / predictions)
    n                             of those, the ones that met their truth
    fallback.n                    of those, the ones that a fallback was run on too
    <score>.sum, <score>.squares  sums of score and score**2, in millionths
    h<bin>                        AMN cosines in bin 0..199; bin b is [-1 + b/100, -1 + (b+1)/100)

where <score> is amn, mean (of the context), last (vector of it) or fallback: cosines to the truth;
or coherence, the mean cosine of neighbours in the context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

MILLION = 1_000_000
BINS = 200
#: Scores against the truth, in the order of a prediction half's rows.
COSINES = ("amn", "mean", "last", "fallback")
SCORES = (*COSINES, "coherence")
TIER_TRUE = "true"

_ROW = np.dtype("<f2")
_ROW_BYTES = 768 * 2


@dataclass(frozen=True, slots=True)
class Labels:
    """What sums are kept apart by."""

    model: str
    lane: str
    slice: str
    tier: str = TIER_TRUE

    def __str__(self) -> str:
        return "|".join(_escaped(part) for part in (self.model, self.lane, self.slice, self.tier))

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
            raise ValueError(f"drift field {field!r} does not have the five parts model|lane|slice|tier|stat")
        return cls(*(part.replace("%7C", "|").replace("%25", "%") for part in labels)), stat


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """A prediction or a truth, as it waits for the other.

    Attributes:
        kind: "prediction" or "truth".
        data: Float16 rows of 768: the truth; or AMN's prediction, context mean, last vector and,
            when a fallback was run, its prediction.
        labels: Of a prediction, the text of its `Labels`.
        coherence: Of a prediction, in millionths.
        minute: Of a prediction, the epoch minute of its stream entry: the event's time.
    """

    kind: str
    data: bytes
    labels: str = ""
    coherence: int = 0
    minute: int = 0

    @property
    def head(self) -> str:
        """Everything but `kind` and `data`, as text for the waiting hash."""
        return f"{self.minute}|{self.coherence}|{self.labels}"

    @classmethod
    def parse(cls, kind: str, head: str, data: bytes) -> Self:
        """Reads what `head` and `data` hold.

        Raises:
            ValueError: Stored by something else.
        """
        minute, coherence, labels = head.split("|", 2)
        rows = (1,) if kind == "truth" else (3, 4)
        if kind not in ("truth", "prediction") or len(data) not in [n * _ROW_BYTES for n in rows]:
            raise ValueError(f"waiting half of kind {kind!r} with {len(data)} bytes is not one of ours")
        return cls(kind=kind, data=data, labels=labels, coherence=int(coherence), minute=int(minute))


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
) -> Half:
    """The half that a sampled request makes.

    Args:
        entry_id: Of the shadow stream; gives the event's minute.
        labels: Where its sums go.
        context: Shape (5, 768), oldest first.
        amn: Shape (768,), the prediction that was served.
        fallback: Shape (768,), the fallback's, when one was run.
    """
    rows = [amn, context.mean(axis=0), context[-1], *([] if fallback is None else [fallback])]
    neighbours = context.astype(_ROW).astype(np.float64)
    return Half(
        kind="prediction",
        data=np.asarray(rows, dtype=_ROW).tobytes(),
        labels=str(labels),
        coherence=_millionths(float(cosines(neighbours[:-1], neighbours[1:]).mean())),
        minute=minute_of(entry_id),
    )


def increments(prediction: Half, truth: Half) -> list[tuple[str, int]]:
    """Fields and amounts that one matched pair adds to its minute (`predictions` apart)."""
    rows = np.frombuffer(prediction.data, dtype=_ROW).reshape(-1, 768).astype(np.float64)
    target = np.frombuffer(truth.data, dtype=_ROW).astype(np.float64)
    values = [_millionths(value) for value in cosines(rows, target[None]).tolist()]
    scores = {**dict(zip(COSINES, values, strict=False)), "coherence": prediction.coherence}
    stats = [("n", 1), (f"h{min((scores['amn'] + MILLION) // (2 * MILLION // BINS), BINS - 1)}", 1)]
    if "fallback" in scores:
        stats.append(("fallback.n", 1))
    for name, value in scores.items():
        stats += [(f"{name}.sum", value), (f"{name}.squares", (value * value + MILLION // 2) // MILLION)]
    return [(f"{prediction.labels}|{stat}", amount) for stat, amount in stats]


def cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row-wise cosines, (N, 768) with (N or 1, 768) -> (N,); 0 where a row is zero."""
    norms = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    dots = (a * b).sum(axis=1)
    values: NDArray[np.float64] = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    return values.clip(-1, 1)


def _millionths(value: float) -> int:
    return round(value * MILLION)


def _escaped(part: str) -> str:
    return part.replace("%", "%25").replace("|", "%7C")
