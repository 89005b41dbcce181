"""A loaded model, ready to answer: the one object that workers and `--direct` share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from amn.bank.bank import Bank, load_bank
from amn.data.vectors import check_numbers
from amn.errors import CheckpointError
from amn.manifest import check_one_encoder
from amn.model.checkpoint import GOLDEN_TOLERANCE, Checkpoint, golden_inputs, load
from amn.model.folded import fold


class Predictor:
    """Predicts next vectors.

    Attributes:
        name: "amn", "gru", ...; goes into answers as `served_by`.
        model_id: `name@sha256[:12]`.
        bank: Reference bank, or None when answers carry no scores.
        forward: (B, 5, 768) float32 -> (B, 768) float32, unit norm; raises ShapeError for another shape.
    """

    def __init__(self, checkpoint: Checkpoint, bank: Bank | None = None) -> None:
        self.checkpoint = checkpoint
        self.name = checkpoint.manifest.name
        self.model_id = checkpoint.manifest.model_id
        self.bank = bank
        self.forward = fold(checkpoint.model).arrays

    @classmethod
    def open(cls, model: Path, bank: Path | None = None) -> Predictor:
        """Loads and checks a checkpoint folder (hash, parameter count, golden vectors), its fast form
        and a bank.

        Raises:
            CheckpointError: Something does not hold, or the bank's vectors are of another encoder than
                the model was trained on; nothing is served then.
        """
        made = cls(load(model), load_bank(bank) if bank else None)
        if made.bank is not None:
            check_one_encoder(
                {made.bank.bank_id: made.bank.manifest, made.model_id: made.checkpoint.manifest}
            )
        made.check_fast_form()
        return made

    def check_fast_form(self) -> None:
        """Compares what serves with the network itself, whose golden vectors held: rewrites, weights as
        int16, and a library that some compiler made.

        Raises:
            CheckpointError: They differ by more than `GOLDEN_TOLERANCE`.
        """
        model = self.checkpoint.model
        # The golden inputs are unlike all text; five rows of a familiar subspace are trusted fully. There
        # are so many of them that the instructions that serve whole batches are tried in every product.
        familiar = [weight[:5] for name, weight in model.state_dict().items() if name.endswith("familiar")]
        x = torch.cat([golden_inputs(model), *(rows.float().expand(12, 5, -1) for rows in familiar)])
        with torch.inference_mode():
            expected = model(x).numpy()
        for count in (1, len(x)):
            difference = float(np.abs(self.forward(x[-count:].numpy()) - expected[-count:]).max())
            if not difference <= GOLDEN_TOLERANCE:
                raise CheckpointError(
                    f"{self.checkpoint.path}: the fast form of {self.model_id} answers {count} context(s) "
                    f"otherwise than the network, by {difference:.2e} (allowed {GOLDEN_TOLERANCE}); install "
                    "the package again, or report this"
                )

    def warm_up(self, batch_max: int) -> None:
        """Runs every batch size that matters once, so that the first request is not the slow one."""
        unit = np.full((batch_max, 5, 768), 768**-0.5, dtype=np.float32)
        for size in {1, 2, 4, 8, batch_max}:
            if size <= batch_max:
                for _ in range(3):
                    vectors = self.forward(unit[:size])
                    if self.bank is not None:
                        self.bank.top2(vectors)

    def predict(self, contexts: NDArray[np.float32]) -> NDArray[np.float32]:
        """Works like `forward`, for contexts of any layout and precision.

        Raises:
            DataError: They are not floats, or some are masked.
        """
        check_numbers("contexts", contexts)
        return self.forward(np.ascontiguousarray(contexts, dtype=np.float32))
