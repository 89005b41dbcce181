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
from torch import Tensor
from torch.nn import functional as F

from amn.kernel import bindings as kernel
from amn.model.folded_bounded import FoldedBounded
from amn.model.stacked import StackedAMN
from amn.model.tensors import columns, shared, unit, weights_of

Array = NDArray[np.float32]


class FoldedStacked:
    """The first stage, and two matrices."""

    def __init__(self, model: StackedAMN) -> None:
        config, first = model.config, FoldedBounded(model.first)
        w = {name: weight for name, weight in weights_of(model).items() if not name.startswith("first.")}
        self.first = first
        self.bound = torch.tensor(config.stage_max)
        self.most = config.residual_share * config.stage_max
        detect, recall = w["detect.weight"] * model.SHARPNESS, w["recall.weight"]
        self.detect, self.detect_bias = columns(detect), w["detect.bias"] * model.SHARPNESS
        self.recall, self.recall_bias = columns(recall), w["recall.bias"]
        layers = (detect.numpy(), recall.numpy()) if kernel.READY else ()
        self._layers = tuple(map(kernel.Layer, layers))

    def __call__(self, x: Tensor) -> Tensor:
        """Contexts (B, 5, 768) -> (B, 768)."""
        return self._corrected(x, *self.first.trusted(x), self._residual)

    @torch.inference_mode()
    def few(self, contexts: Array) -> Array:
        """Predicts a few contexts from array to array."""
        x = shared(contexts)
        if self.first.loops is None:
            return self(x).numpy()
        answers, trust = map(torch.from_numpy, self.first.loops.trusted(contexts))
        return self._corrected(x, answers, trust, self._residual_of_few).numpy()

    def _corrected(
        self, x: Tensor, answers: Tensor, trust: Tensor, residual_of: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Answers of the first stage (B, 768) with the second one's correction; overwrites them."""
        rows = trust.nonzero().squeeze(1)  # (T,)
        if not len(rows):
            return answers
        x, first = x[rows], answers[rows]
        seen = torch.cat([first, unit(x.sum(1)), x[:, -1]], -1)  # (T, 3 D)
        residual = residual_of(seen)  # (T, D)
        length = torch.linalg.vector_norm(residual, dim=1, keepdim=True)
        share = trust[rows].unsqueeze(1) / torch.hypot(length, self.bound)
        answers[rows] = unit(torch.addcmul(first, share, residual, value=self.most))
        return answers

    def _residual(self, seen: Tensor) -> Tensor:
        hidden = F.gelu(torch.addmm(self.detect_bias, seen, self.detect))  # (T, 1024)
        return torch.addmm(self.recall_bias, hidden, self.recall)

    def _residual_of_few(self, seen: Tensor) -> Tensor:
        detect, recall = self._layers
        hidden = F.gelu(torch.from_numpy(detect(seen.numpy())).add_(self.detect_bias))
        return torch.from_numpy(recall(hidden.numpy())).add_(self.recall_bias)
