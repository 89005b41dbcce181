"""A loaded model, ready to answer: the one object that workers and `--direct` share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amn.checkpoint import Checkpoint, load
from amn.folded import fold
from amn.reference import Bank, load_bank


class Predictor:
    """Predicts next vectors.

    Attributes:
        name: "amn", "gru", ...; goes into answers as `served_by`.
        model_id: `name@sha256[:12]`.
        bank: Reference bank, or None when answers carry no scores.
    """

    def __init__(self, checkpoint: Checkpoint, bank: Bank | None = None) -> None:
        self.checkpoint = checkpoint
        self.name = checkpoint.manifest.name
        self.model_id = checkpoint.manifest.model_id
        self.bank = bank
        self._folded = fold(checkpoint.model)

    @classmethod
    def open(cls, model: Path, bank: Path | None = None) -> Predictor:
        """Loads and checks a checkpoint folder (hash, parameter count, golden vectors) and a bank.

        Raises:
            CheckpointError: Something does not hold; nothing is served then.
        """
        return cls(load(model), load_bank(bank) if bank else None)

    def warm_up(self, batch_max: int) -> None:
        """Runs every batch size that matters once, so that the first request is not the slow one."""
        unit = np.full((batch_max, 5, 768), 768**-0.5, dtype=np.float32)
        for size in {1, 2, 4, 8, batch_max}:
            if size <= batch_max:
                for _ in range(3):
                    vectors = self.forward(unit[:size])
                    if self.bank is not None:
                        self.bank.top2(vectors)

    def forward(self, contexts: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, 5, 768) float32 -> (B, 768) float32, unit norm.

        Raises:
            ShapeError: Another shape.
        """
        return self._folded.arrays(contexts)

    def predict(self, contexts: NDArray[np.float32]) -> NDArray[np.float32]:
        """As `forward`, of contexts of any layout and type."""
        return self.forward(np.ascontiguousarray(contexts, dtype=np.float32))
