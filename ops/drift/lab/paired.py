"""A paired comparison of two models on the same sequences: `amn drift replay`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amn.data.arrays import load_npz
from amn.data.vectors import unit
from ops.drift.measures.comparison import Z_99
from ops.drift.measures.statistics import Floats
from ops.errors import FileRefused
from ops.sample import Sample

if TYPE_CHECKING:
    from amn.predictor import Predictor

Vectors = NDArray[np.float32]
#: With fewer pairs no interval is given.
_PAIRS_MIN = 5
_BATCH = 256


class Sequences(NamedTuple):
    """Frozen sequences: contexts (N, 5, 768), the truths (N, 768) that came next, lane and slice of each."""

    contexts: Vectors
    truths: Vectors
    lanes: NDArray[np.str_]
    slices: NDArray[np.str_]

    @classmethod
    def load(cls, path: Path) -> Sequences:
        """Reads an .npz with `contexts` and `truths`, and perhaps `lanes` and `slices`."""
        return cls.of_arrays(load_npz(path, cls._fields), str(path))

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
        contexts, truths = (unit(arrays[key].astype(np.float32)) for key in ("contexts", "truths"))
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


def cosines(model: Predictor, exemplars: Sequences) -> Floats:
    """Cosine of each prediction with its truth, (N,)."""
    found = []
    for at in range(0, len(exemplars.contexts), _BATCH):
        contexts = np.ascontiguousarray(exemplars.contexts[at : at + _BATCH])
        predicted = model.predict(contexts).astype(np.float64)
        found.append((predicted * exemplars.truths[at : at + _BATCH]).sum(axis=1))
    return np.concatenate(found)


def differences(one: Floats, other: Floats, exemplars: Sequences) -> list[dict[str, Any]]:
    """Mean cosines of both models and the mean paired difference, all together and by slice and lane.

    A difference is positive when the other model is better; too few pairs have no interval.
    """
    names = [f"{s} / {lane}" for s, lane in zip(exemplars.slices, exemplars.lanes, strict=True)]
    groups = {"all": np.full(len(one), True)}
    groups |= {name: np.array(names) == name for name in sorted(set(names))}
    rows = []
    for name, at in groups.items():
        pairs, n = (other - one)[at], int(at.sum())
        means = {"mean": one[at].mean(), "against": other[at].mean(), "difference": pairs.mean()}
        half = Z_99 * pairs.std(ddof=1) / math.sqrt(n) if n >= _PAIRS_MIN else math.nan
        bounds = {"low_99": pairs.mean() - half, "high_99": pairs.mean() + half}
        figures = {key: round(float(value), 6) for key, value in (means | bounds).items()}
        rows.append({"group": name, "n": n, **figures})
    return rows
