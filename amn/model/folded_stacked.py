"""The stacked layout, folded: the fast form of the shipped fallback.

The first stage is the folded AMN, which says how far it trusts a context on the way; sharpness and
share go into the weights. A context that is not trusted keeps AMN's answer and pays for nothing more.
Where compiled loops serve, the two layers are int16 (amn/kernel/kernel.c): 9 MB less through the
caches that the AMN workers on the same machine live in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from amn.config import CONTEXT_LENGTH, VECTOR_DIM
from amn.data.vectors import unit
from amn.kernel import bindings as kernel
from amn.model.folded_bounded import FoldedBounded
from amn.model.network import check_contexts
from amn.model.stacked import StackedAMN
from amn.model.tensors import weights_of

Array = NDArray[np.float32]


class FoldedStacked:
    """The first stage, and two matrices."""

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
        if contexts.shape[1:] != (CONTEXT_LENGTH, VECTOR_DIM):
            check_contexts(contexts)
        answers, trust = self._first.trusted(contexts)
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
