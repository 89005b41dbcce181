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
from amn.model.network import BoundedAMN
from amn.model.stacked import StackedAMN
from amn.model.tensors import shared

Array = NDArray[np.float32]


class Folded:
    """The fast form of a model, from contexts (B, 5, 768) float32 to unit vectors (B, 768).

    Attributes:
        arrays: Predicts from array to array; raises ShapeError for contexts of another shape.
    """

    def __init__(self, arrays: Callable[[Array], Array]) -> None:
        self.arrays = arrays

    def __call__(self, contexts: Array | Tensor) -> Tensor:
        """Predicts a tensor.

        Raises:
            ShapeError: Another shape.
        """
        return torch.from_numpy(self.arrays(np.asarray(contexts)))


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
