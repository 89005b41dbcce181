"""Exact rewrites of the networks that are shipped, for fast inference on a CPU.

Sums are only taken in another order, and where compiled loops serve (amn/kernel/bindings.py), in 16-bit
integers; results agree with the modules within 1e-5. The rewrite of the bounded layout stands in
`folded_bounded.py`, those of the layouts on top of it below. Every other one runs as its module is written.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from amn.data.vectors import unit
from amn.kernel import bindings as kernel
from amn.model.folded_bounded import FoldedBounded, weights_of
from amn.model.folded_retrieval import FoldedRetrieval
from amn.model.network import BoundedAMN
from amn.model.retrieval import RetrievalAMN
from amn.model.stacked import StackedAMN

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
        return Folded(FoldedBounded(model).predict)
    if isinstance(model, StackedAMN):
        return Folded(FoldedStacked(model))
    if isinstance(model, RetrievalAMN) and kernel.READY and len(model.memory):
        return Folded(FoldedRetrieval(model))

    @torch.inference_mode()
    def as_written(contexts: Array) -> Array:
        answers: Array = model(shared(contexts)).numpy()
        return answers

    return Folded(as_written)


def shared(array: NDArray[np.floating]) -> Tensor:
    """A tensor in the array's memory; of a copy where that is read-only, which torch would warn of."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


class FoldedStacked:
    """The stacked layout: the folded first stage, and two matrices.

    The first stage says how far it trusts a context on the way; sharpness and share go into the weights.
    A context that is not trusted keeps AMN's answer and pays for nothing more. Where compiled loops serve,
    the two layers are int16 (amn/kernel/kernel.c): 9 MB less through the caches that the AMN workers on
    the same machine live in.
    """

    def __init__(self, model: StackedAMN) -> None:
        w, config = weights_of(model), model.config
        self._first = FoldedBounded(model.first)
        self._bound = config.stage_max
        self._most = config.residual_share * config.stage_max
        sharpness = np.float32(model.SHARPNESS)
        self._detect, self._detect_bias = _layer(w["detect.weight"] * sharpness), w["detect.bias"] * sharpness
        self._recall, self._recall_bias = _layer(w["recall.weight"]), w["recall.bias"]

    def __call__(self, contexts: Array) -> Array:
        """(B, 5, 768) -> (B, 768), unit norm.

        Raises:
            ShapeError: The contexts have another shape.
        """
        trust = np.empty(len(contexts), np.float32)
        answers = self._first.predict(contexts, trust)
        rows = np.flatnonzero(trust)  # (T,)
        if not len(rows):
            return answers
        x, first = contexts[rows], answers[rows]
        seen = np.concatenate([first, unit(x.sum(1)), x[:, -1]], 1)  # (T, 3 D)
        hidden = F.gelu(torch.from_numpy(self._detect(seen) + self._detect_bias)).numpy()  # (T, 1024)
        residual = self._recall(hidden) + self._recall_bias  # (T, D)
        length = np.sqrt(np.vecdot(residual, residual) + self._bound**2)
        answers[rows] = unit(first + (self._most * trust[rows] / length)[:, None] * residual)
        return answers


def _layer(weights: Array) -> Callable[[Array], Array]:
    """(B, in) -> (B, out), of weights (out, in)."""
    return kernel.Layer(weights) if kernel.READY else lambda rows: rows @ weights.T
