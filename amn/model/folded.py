"""Exact rewrites of the networks that are shipped, for fast inference on a CPU.

Sums are only taken in another order, and where compiled loops serve (amn/kernel/bindings.py), in 16-bit
integers; results agree with the modules within 1e-5. The rewrites stand in `folded_bounded.py` and
`folded_stacked.py`. Every other layout runs as its module is written.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amn.model.folded_bounded import FoldedBounded
from amn.model.folded_stacked import FoldedStacked
from amn.model.network import BoundedAMN, check_contexts
from amn.model.stacked import StackedAMN
from amn.model.tensors import shared

Array = NDArray[np.float32]


class Folded:
    """The fast form of a model, from contexts (B, 5, 768) float32 to unit vectors (B, 768)."""

    def __init__(self, forward: Callable[[Array], Array]) -> None:
        self._forward = forward

    def __call__(self, contexts: Array | Tensor) -> Tensor:
        """Predicts a tensor.

        Raises:
            ShapeError: Another shape.
        """
        return torch.from_numpy(self.arrays(np.asarray(contexts)))

    def arrays(self, contexts: Array) -> Array:
        """Predicts from array to array.

        Raises:
            ShapeError: Another shape.
        """
        check_contexts(contexts)
        return self._forward(contexts)


def fold(model: nn.Module) -> Folded:
    """Make the fast form of a model.

    The weights of the layouts that are rewritten are copied, so later training does not change the result.
    """
    model = model.eval()
    if isinstance(model, BoundedAMN):
        return Folded(FoldedBounded(model))
    if isinstance(model, StackedAMN):
        return Folded(FoldedStacked(model))

    @torch.inference_mode()
    def as_written(contexts: Array) -> Array:
        answers: Array = model(shared(contexts)).numpy()
        return answers

    return Folded(as_written)
