"""The answers of some rows, column by column."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ops.predict.models import merge
from producer.messages import BatchReply

#: The gate says this of a row that a fallback could better, of a message that holds many.
_CHOICE = "batch"
Vectors = NDArray[np.float32]


class Answers:
    """The answers of n rows; a row without one holds NaN, and `failures` says why.

    Attributes:
        vectors: Shape (n, 768), float32, unit norm: the final answers.
        taken, fast: The rows that a fallback answers too, and AMN's answers to them.
        confidences, margins, gains: Shape (n,), float32.
        candidates: Shape (n,), rows that a fallback may better.
        reasons, sheds, served_by: Shape (n,), of each row the rules that fired, why no fallback answered all
            the same, and the model whose answer it is.
        failures: By row, code and message.
        models: The ids of model, bank, policy and fallback.
    """

    COLUMNS = ("vectors", "confidences", "margins", "gains", "candidates", "reasons", "sheds", "served_by")

    def __init__(self, count: int, vectors: Vectors | None = None) -> None:
        self.vectors: Vectors = np.full((count, 768), np.nan, np.float32) if vectors is None else vectors
        self.taken, self.fast = np.zeros(0, np.intp), self.vectors[:0]
        self.confidences, self.margins, self.gains = np.zeros((3, count), np.float32)
        self.candidates = np.zeros(count, bool)
        self.reasons, self.sheds, self.served_by = np.full((3, count), "", object)
        self.reasons[:] = [()] * count
        self.failures: dict[int, tuple[str, str]] = {}
        self.models: dict[str, str] = {}

    def put(self, rows: NDArray[np.intp], other: Answers, *columns: str) -> None:
        """Take the answers of another for some rows; without names, all columns. Errors as `merge`."""
        for name in columns or self.COLUMNS:
            getattr(self, name)[rows] = getattr(other, name)
        self.failures |= {int(rows[row]): why for row, why in other.failures.items()}
        merge(self.models, other.models)

    def better(self, other: Answers) -> None:
        """Take a fallback's answers for the rows that it was asked for."""
        self.fast = self.vectors[self.taken]
        self.put(self.taken, other, "vectors", "served_by")
        self.sheds[self.taken] = ""

    @classmethod
    def joined(cls, parts: list[Answers]) -> Answers:
        """Return a copy of the rows of all, one after the other: those of a reply cannot be written to.

        Errors as `merge`.
        """
        found, start = cls(0), 0
        for part in parts:
            found.failures |= {start + row: why for row, why in part.failures.items()}
            start += len(part.vectors)
            merge(found.models, part.models)
        for name in cls.COLUMNS if parts else ():
            setattr(found, name, np.concatenate([getattr(part, name) for part in parts]))
        return found


def answers_of(reply: BatchReply) -> Answers:
    """Return what the answer to a message says."""
    answers = Answers(len(reply), reply.vectors)
    answers.confidences, answers.margins, answers.gains = reply.confidences, reply.margins, reply.gains
    answers.candidates = reply.shed_as(_CHOICE)
    answers.served_by[:] = reply.served_by
    # Few combinations of rules fire: each is spelt once.
    _, firsts, kinds = np.unique(reply.fired, return_index=True, return_inverse=True)
    spelt = np.empty(len(firsts), object)
    for kind, row in enumerate(firsts.tolist()):
        spelt[kind] = reply.reasons(row)
    answers.reasons = spelt[kinds]
    answers.sheds[:] = np.array(["", *reply.sheds], object)[reply.shed]
    answers.models = {"model": reply.model, "bank": reply.bank, "policy": reply.policy}
    if reply.tiers:
        amn, *others = reply.tiers
        answers.models |= {"model": amn, "fallback": ", ".join(others), "calibration": reply.calibration}
        weights = np.stack([pair[:, 1] for pair in reply.tiers.values()])
        answers.served_by[weights[1:].sum(axis=0) <= 0] = "amn"  # the fallback was asked, and added nothing
    return answers
