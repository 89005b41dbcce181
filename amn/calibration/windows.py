"""The data of a calibration: held-out windows, both models' cosines, all scores.

Two slices are fitted on, and neither is ever judged: the validation articles, and the same articles
*turned*. One random rotation of all vectors leaves every cosine among them as it was and takes away
what the models know of particular directions, which is what an unseen domain does: turned text stands
for unfamiliar text without a look at it. Judged are the test articles and the unseen domain.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from amn.bank.bank import Bank
from amn.data.dataset import split_by_article
from amn.data.vectors import Index, Vectors, VectorSet, chunks
from amn.evaluation import metrics
from amn.evaluation.metrics import Cosines, Predict, cosine
from amn.gate.gain import features
from amn.gate.scores import mean_top_k
from amn.policy import ConfidenceRule

FITTED, JUDGED = ("validation", "turned"), ("test", "unseen")
#: The confidence rule of the preset `upstream`.
UPSTREAM = ConfidenceRule(below=0.70, method="mean_top_k")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Windows with everything that a rule or a score may look at; all arrays have n rows.

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
        arrays = {f.name: getattr(self, f.name)[keep] for f in fields(self) if f.name != "name"}
        return Slice(name=self.name, **arrays)

    def final(self, weight: NDArray[np.floating]) -> Cosines:
        """Cosine with the truth of normalise((1 - w) AMN + w fallback), from the three cosines."""
        length2 = 1 - 2 * weight * (1 - weight) * (1 - self.agreement)
        made: Cosines = ((1 - weight) * self.fast + weight * self.slow) / np.sqrt(length2)
        return made


def join(slices: list[Slice]) -> Slice:
    """Several slices as one."""
    names = [f.name for f in fields(Slice) if f.name != "name"]
    arrays = {name: np.concatenate([getattr(s, name) for s in slices]) for name in names}
    return Slice(name="+".join(s.name for s in slices), **arrays)


def score_slices(data: VectorSet, amn: Predict, fallback: Predict, bank: Bank, every: int) -> list[Slice]:
    """All four slices; `every` takes each n-th window only, for a quick look."""
    split = split_by_article(data)
    starts = {"validation": split.validation, "turned": split.validation}
    starts |= {"test": split.test, "unseen": split.unseen}
    scorer = Scorer(data, amn, fallback, bank)
    return [scorer.score(name, starts[name][::every]) for name in (*FITTED, *JUDGED)]


class Scorer:
    """Runs both models and the bank on windows."""

    def __init__(self, data: VectorSet, amn: Predict, fallback: Predict, bank: Bank) -> None:
        self._data, self._amn, self._fallback, self._bank = data, amn, fallback, bank
        self._mean_top = mean_top_k(bank.vectors, UPSTREAM)
        noise = np.random.default_rng(0).standard_normal((768, 768))
        self._turn = np.linalg.qr(noise)[0].astype(np.float32)

    def score(self, name: str, starts: Index) -> Slice:
        """One slice; `turned` sees everything through the rotation."""
        edit = self._rotate if name == "turned" else None
        truth = metrics.truth(self._data, starts)
        if name == "turned":
            truth = truth @ self._turn
        fast = metrics.predict_windows(self._amn, self._data, starts, edit)
        slow = metrics.predict_windows(self._fallback, self._data, starts, edit)
        rows, mean_top = self._scores(starts, fast, turned=name == "turned")
        return Slice(
            name=name,
            rows=rows,
            mean_top=mean_top,
            fast=cosine(fast, truth),
            slow=cosine(slow, truth),
            agreement=cosine(fast, slow),
            articles=self._data.article[starts],
        )

    def _rotate(self, contexts: torch.Tensor) -> torch.Tensor:
        return contexts @ torch.from_numpy(self._turn)

    def _scores(self, starts: Index, fast: Vectors, *, turned: bool) -> tuple[NDArray[np.float64], Cosines]:
        rows, means = [], []
        for part in chunks(len(starts), 1024):
            contexts = np.ascontiguousarray(self._data.windows(starts[part])[:, :-1])
            if turned:
                contexts = contexts @ self._turn
            predictions = fast[part]
            best, second, *_ = self._bank.top2(predictions)
            bank = np.stack([best, best - second], axis=1)
            rows.append(np.concatenate([features(contexts, fast[part]), bank], axis=1))
            means.append(self._mean_top(predictions).astype(np.float64))
        return np.concatenate(rows), np.concatenate(means)
