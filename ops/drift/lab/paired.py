"""`amn drift replay`: the same sequences through two models, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from amn.data.arrays import load_npz
from ops.errors import FileRefused
from ops.sample import Sample

Vectors = NDArray[np.float32]
#: Two-sided 99 % of a normal distribution; with fewer pairs than this no interval is given.
_Z_99, _PAIRS_MIN = 2.576, 5


_ARRAYS = ("contexts", "truths", "lanes", "slices")


class Model(Protocol):
    """A model that scores; `amn.predictor.Predictor` is one."""

    def predict(self, contexts: Vectors) -> Vectors:
        """(B, 5, 768) -> (B, 768), unit norm."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """Frozen sequences.

    Attributes:
        contexts: (N, 5, 768).    truths: (N, 768), the vectors that came next.
        lanes, slices: Of each.
    """

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
        try:
            return cls.of_arrays(load_npz(path, _ARRAYS), str(path))
        except KeyError as error:
            raise FileRefused(f"{path} holds no exemplars ({error}); it needs contexts and truths") from error

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], name: str) -> Sequences:
        """Makes it from `contexts`, `truths` and perhaps `lanes` and `slices`; `name` is for the error.

        Raises:
            FileRefused: The shapes do not fit.
            KeyError: One is missing.
        """
        if odd := [key for key in ("contexts", "truths") if arrays[key].dtype.kind != "f"]:
            raise FileRefused(f"{name}: {odd[0]} are of type {arrays[odd[0]].dtype}; floats are needed")
        contexts, truths = (_unit(arrays[key]) for key in ("contexts", "truths"))
        n = len(contexts)
        lanes, slices = (arrays.get(key, np.full(n, "all")) for key in ("lanes", "slices"))
        fits = contexts.shape[1:] == (5, 768) and truths.shape == (n, 768) and len(lanes) == len(slices) == n
        if not fits or not n:
            raise FileRefused(
                f"{name}: contexts {contexts.shape} and truths {truths.shape} do not fit; "
                "(N, 5, 768) and (N, 768) are needed"
            )
        return cls(contexts=contexts, truths=truths, lanes=lanes, slices=slices)

    @classmethod
    def of_sample(cls, sample: Sample) -> Sequences:
        """Every window of the shipped sample; its domain stands for the lane."""
        at = sample.start
        domains = np.array(sample.domains)[sample.article]
        return cls(
            contexts=sample.vectors[at[:, None] + np.arange(5)],
            truths=sample.vectors[at + 5],
            lanes=domains,
            slices=np.where(sample.ood, "ood", "id"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One group of pairs.

    Attributes:
        group: Slice and lane.    n: Pairs.
        mean_one, mean_other: Mean cosine to the truth of each model.
        error: Standard error of the mean difference; NaN for too few pairs.
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
        return self.difference - _Z_99 * self.error, self.difference + _Z_99 * self.error


def cosines(model: Model, exemplars: Sequences, batch: int = 256) -> NDArray[np.float64]:
    """Cosine of each prediction with its truth, (N,)."""
    found = []
    for at in range(0, len(exemplars.contexts), batch):
        contexts = np.ascontiguousarray(exemplars.contexts[at : at + batch])
        predicted = model.predict(contexts).astype(np.float64)
        found.append((predicted * exemplars.truths[at : at + batch]).sum(axis=1))
    return np.concatenate(found)


def differences(
    one: NDArray[np.float64], other: NDArray[np.float64], exemplars: Sequences
) -> list[Difference]:
    """Paired differences, all together and by slice and lane; the items are the same for both."""
    groups = np.char.add(np.char.add(exemplars.slices.astype(str), " / "), exemplars.lanes.astype(str))
    found = [_difference("all", one, other)]
    for group in sorted(set(groups.tolist())):
        at = groups == group
        found.append(_difference(group, one[at], other[at]))
    return found


def _difference(group: str, one: NDArray[np.float64], other: NDArray[np.float64]) -> Difference:
    n = len(one)
    spread = float((other - one).std(ddof=1)) if n >= _PAIRS_MIN else math.nan
    return Difference(
        group=group,
        n=n,
        mean_one=float(one.mean()),
        mean_other=float(other.mean()),
        error=spread / math.sqrt(n),
    )


def _unit(rows: NDArray[np.floating]) -> Vectors:
    rows = rows.astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)
