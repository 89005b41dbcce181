"""A paired comparison of two models on the same sequences: `amn drift replay`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from amn.data.arrays import load_npz
from ops.drift.measures.comparison import Z_99
from ops.drift.measures.statistics import Floats
from ops.errors import FileRefused
from ops.sample import Sample

Vectors = NDArray[np.float32]
#: With fewer pairs no interval is given.
_PAIRS_MIN = 5
_ARRAYS = ("contexts", "truths", "lanes", "slices")


class Model(Protocol):
    """A model that scores; `amn.predictor.Predictor` is one."""

    def predict(self, contexts: Vectors) -> Vectors:
        """(B, 5, 768) -> (B, 768), unit norm."""
        ...


class Sequences(NamedTuple):
    """Frozen sequences: contexts (N, 5, 768), the truths (N, 768) that came next, lane and slice of each."""

    contexts: Vectors
    truths: Vectors
    lanes: NDArray[np.str_]
    slices: NDArray[np.str_]

    @classmethod
    def load(cls, path: Path) -> Sequences:
        """Reads an .npz with `contexts` and `truths`, and perhaps `lanes` and `slices`.

        Raises:
            FileRefused: It cannot be read, or its shapes do not fit.
        """
        return cls.of_arrays(load_npz(path, _ARRAYS), str(path))

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], name: str) -> Sequences:
        """Makes it from the arrays of `load`; `name` is for the error.

        Raises:
            FileRefused: An array is missing, or the shapes do not fit.
        """
        for key in ("contexts", "truths"):
            if key not in arrays:
                raise FileRefused(f"{name} holds no {key}; it needs contexts and truths")
            if arrays[key].dtype.kind != "f":
                raise FileRefused(f"{name}: {key} are of type {arrays[key].dtype}; floats are needed")
        contexts, truths = (_unit(arrays[key]) for key in ("contexts", "truths"))
        n = len(contexts)
        lanes, slices = (arrays.get(key, np.full(n, "all")) for key in ("lanes", "slices"))
        fits = contexts.shape[1:] == (5, 768) and truths.shape == (n, 768) and len(lanes) == len(slices) == n
        if not fits or not n:
            raise FileRefused(
                f"{name}: contexts {contexts.shape} and truths {truths.shape} do not fit; "
                "(N, 5, 768) and (N, 768) are needed"
            )
        return cls(contexts, truths, lanes, slices)

    @classmethod
    def of_sample(cls, sample: Sample) -> Sequences:
        """Every window of the shipped sample; its domain stands for the lane."""
        at, domains = sample.start, np.array(sample.domains)[sample.article]
        contexts, truths = sample.vectors[at[:, None] + np.arange(5)], sample.vectors[at + 5]
        return cls(contexts, truths, domains, np.where(sample.ood, "ood", "id"))


class Difference(NamedTuple):
    """One group of pairs: mean cosine to the truth of each model, and the error of the mean difference.

    The error is NaN for too few pairs.
    """

    group: str
    n: int
    mean_one: float
    mean_other: float
    error: float

    @property
    def difference(self) -> float:
        """Other minus one: positive when the other model is better."""
        return self.mean_other - self.mean_one

    @property
    def interval(self) -> tuple[float, float]:
        """99 % confidence interval of the difference."""
        return self.difference - Z_99 * self.error, self.difference + Z_99 * self.error

    def to_json(self) -> dict[str, Any]:
        """The group's object of `amn drift replay --json`."""
        low, high = (None if math.isnan(value) else round(value, 6) for value in self.interval)
        means = {"mean": round(self.mean_one, 6), "against": round(self.mean_other, 6)}
        rest = {"difference": round(self.difference, 6), "low_99": low, "high_99": high}
        return {"group": self.group, "n": self.n, **means, **rest}


def cosines(model: Model, exemplars: Sequences, batch: int = 256) -> Floats:
    """Cosine of each prediction with its truth, (N,)."""
    found = []
    for at in range(0, len(exemplars.contexts), batch):
        contexts = np.ascontiguousarray(exemplars.contexts[at : at + batch])
        predicted = model.predict(contexts).astype(np.float64)
        found.append((predicted * exemplars.truths[at : at + batch]).sum(axis=1))
    return np.concatenate(found)


def differences(one: Floats, other: Floats, exemplars: Sequences) -> list[Difference]:
    """Paired differences, all together and by slice and lane; the items are the same for both."""
    names = [f"{s} / {lane}" for s, lane in zip(exemplars.slices, exemplars.lanes, strict=True)]
    groups = {"all": np.full(len(one), True)}
    groups |= {name: np.array(names) == name for name in sorted(set(names))}
    return [_difference(name, one[at], other[at]) for name, at in groups.items()]


def _difference(group: str, one: Floats, other: Floats) -> Difference:
    n = len(one)
    spread = float((other - one).std(ddof=1)) if n >= _PAIRS_MIN else math.nan
    return Difference(group, n, float(one.mean()), float(other.mean()), spread / math.sqrt(n))


def _unit(rows: NDArray[np.floating]) -> Vectors:
    rows = rows.astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)
