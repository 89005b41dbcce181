"""The data of a calibration: held-out windows, both models' cosines, all scores.

Two slices are fitted on, and neither is ever judged: the validation articles, and the same articles
*turned*. One random rotation of all vectors leaves every cosine among them as it was and takes away
the models' knowledge of particular directions, as an unseen domain does: turned text stands
for unfamiliar text without a look at it. Judged are the test articles and the unseen domain.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from amn.bank.bank import Bank
from amn.data.dataset import Split
from amn.data.vectors import Index, VectorSet, chunks
from amn.evaluation import metrics
from amn.evaluation.metrics import Cosines, Predict, cosine
from amn.gate.gain import features
from amn.gate.scores import mean_top_k
from amn.policy import ConfidenceRule

FITTED, JUDGED = ("validation", "turned"), ("test", "unseen")
#: The confidence rule of the preset `upstream`.
UPSTREAM = ConfidenceRule(below=0.70, method="mean_top_k")
#: AMN and its fallback.
Models = tuple[Predict, Predict]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Windows with everything that a rule or a score may read; all arrays have n rows.

    Attributes:
        rows: (n, 7): `gain.FEATURES`, then confidence and margin.
        mean_top: Mean cosine of the 50 best of the seeded sample.
        fast, slow: Cosine of AMN's and of the fallback's answer with the true next vector.
        agreement: Cosine of the two answers.
        articles: Article of each window.
    """

    name: str
    rows: NDArray[np.float64]
    mean_top: Cosines
    fast: Cosines
    slow: Cosines
    agreement: Cosines
    articles: NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.fast)

    def part(self, keep: NDArray[np.bool_]) -> Slice:
        """Some of the windows."""
        return Slice(name=self.name, **{name: getattr(self, name)[keep] for name in _ARRAYS})

    def gain(self, weight: NDArray[np.floating] | float) -> Cosines:
        """Cosine with the truth of normalise((1 - w) AMN + w fallback) minus AMN's, by the three cosines."""
        length2 = 1 - 2 * weight * (1 - weight) * (1 - self.agreement)
        final: Cosines = ((1 - weight) * self.fast + weight * self.slow) / np.sqrt(length2)
        return final - self.fast


_ARRAYS = [field.name for field in fields(Slice) if field.name != "name"]


def join(slices: list[Slice]) -> Slice:
    """Several slices as one."""
    arrays = {name: np.concatenate([getattr(s, name) for s in slices]) for name in _ARRAYS}
    return Slice(name="+".join(s.name for s in slices), **arrays)


def score_slices(data: VectorSet, split: Split, models: Models, bank: Bank, every: int) -> dict[str, Slice]:
    """All four slices; `every` takes each n-th window only, for a quick look."""
    starts = {"validation": split.validation, "turned": split.validation}
    starts |= {"test": split.test, "unseen": split.unseen}
    return {name: score_slice(name, rows[::every], data, models, bank) for name, rows in starts.items()}


def score_slice(name: str, starts: Index, data: VectorSet, models: Models, bank: Bank) -> Slice:
    """One slice, by both models and the bank; `turned` sees everything through the rotation."""
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((768, 768)))[0].astype(np.float32)
    turned, mean_top = name == "turned", mean_top_k(bank.vectors, UPSTREAM)
    truth = data.next_vectors(starts)
    truth = truth @ turn if turned else truth
    edit = (lambda x: x @ torch.from_numpy(turn)) if turned else None
    fast, slow = (metrics.predict_windows(model, data, starts, edit) for model in models)
    rows, means = [], []
    for part in chunks(len(starts), 1024):
        contexts = np.ascontiguousarray(data.windows(starts[part])[:, :-1])
        contexts = contexts @ turn if turned else contexts
        best, second, _ = bank.top2(fast[part])
        rows.append(np.column_stack([features(contexts, fast[part]), best, best - second]))
        means.append(mean_top(fast[part]).astype(np.float64))
    return Slice(
        name=name,
        rows=np.concatenate(rows),
        mean_top=np.concatenate(means),
        fast=cosine(fast, truth),
        slow=cosine(slow, truth),
        agreement=cosine(fast, slow),
        articles=data.article[starts],
    )
