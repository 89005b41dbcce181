"""Exact rewrites of the mixture networks for fast inference on a CPU.

Sums are only taken in another order, and where compiled loops serve (amn/kernel/bindings.py), in 16-bit
integers; results agree with the modules within 1e-5.

1. Scores need no projection of the five context vectors: q . (W_k x_i) = (W_k^T q) . x_i,
   one small product a context instead of five. Terms equal for all i leave the softmax.
2. LayerNorm gains and biases, the score scale and the sharpness go into the next matrix.
3. Mean and mixture are one (2 x 5) product with the context.

The two layouts that are shipped have files of their own: `folded_bounded.py`, `folded_stacked.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from amn.model.folded_bounded import FEW, FoldedBounded
from amn.model.folded_stacked import FoldedStacked
from amn.model.network import SCORE_SCALE, BoundedAMN, CardAMN, PublishedAMN, check_contexts
from amn.model.stacked import StackedAMN
from amn.model.tensors import against, columns, join, normal, shared, unit, weights_of

Contexts = NDArray[np.float32] | Tensor
Array = NDArray[np.float32]


class Folded:
    """The fast form of a model; its weights are copies."""

    def __init__(
        self, forward: Callable[[Tensor], Tensor], few: Callable[[Array], Array] | None = None
    ) -> None:
        self._forward = forward
        self._few = few

    def __call__(self, contexts: Contexts) -> Tensor:
        """(B, 5, 768) float32 -> (B, 768), unit norm.

        Raises:
            ShapeError: Another shape.
        """
        x = shared(contexts) if isinstance(contexts, np.ndarray) else contexts
        check_contexts(x)
        with torch.inference_mode():
            return self._forward(x)

    def arrays(self, contexts: Array) -> Array:
        """Predicts from array to array, which spares up to `FEW` contexts the way through tensors."""
        if self._few is not None and len(contexts) <= FEW:
            check_contexts(contexts)
            return self._few(contexts)
        return self(contexts).numpy()


def fold(model: nn.Module) -> Folded:
    """Make the fast form of a model.

    The weights are copied, so later training of `model` does not change the result. Models
    without rewrites (GRU, Transformer) run as they are.
    """
    model = model.eval()
    with torch.no_grad():
        if isinstance(model, BoundedAMN):
            bounded = FoldedBounded(model)
            return Folded(bounded, bounded.few)
        if isinstance(model, StackedAMN):
            stacked = FoldedStacked(model)
            return Folded(stacked, stacked.few)
        if isinstance(model, CardAMN):
            return Folded(FoldedCard(model))
        return Folded(FoldedPublished(model) if isinstance(model, PublishedAMN) else model)


class FoldedPublished:
    """The published layout; its key bias is the same for all five and drops out."""

    def __init__(self, model: PublishedAMN) -> None:
        w = weights_of(model)
        net = "residual_net"
        self.query = columns(w["query_encoder.weight"])  # (768, 256)
        self.query_bias = w["query_encoder.bias"]
        self.key = w["context_encoder.weight"] * SCORE_SCALE  # (256, 768)
        self.first, self.first_bias = columns(w[f"{net}.0.weight"]), w[f"{net}.0.bias"]
        self.second = columns(w[f"{net}.3.weight"] * w[f"{net}.2.weight"])  # (512, 256)
        self.second_bias = w[f"{net}.3.weight"] @ w[f"{net}.2.bias"] + w[f"{net}.3.bias"]
        self.last = columns(w[f"{net}.6.weight"] * w[f"{net}.5.weight"])  # (256, 768)
        self.last_bias = w[f"{net}.6.weight"] @ w[f"{net}.5.bias"] + w[f"{net}.6.bias"]

    def __call__(self, x: Tensor) -> Tensor:
        """Contexts (B, 5, 768) -> (B, 768)."""
        baseline = x.mean(1)  # (B, D)
        turned = torch.addmm(self.query_bias, baseline, self.query) @ self.key  # (B, D)
        weights = against(x, turned).softmax(1)  # (B, K)
        joined = join(x, weights)  # (B, 2 D)
        h = F.gelu(torch.addmm(self.first_bias, joined, self.first))
        h = F.gelu(torch.addmm(self.second_bias, normal(h), self.second))
        return unit(baseline + torch.addmm(self.last_bias, normal(h), self.last))


class FoldedCard:
    """The card layout; the input norm's bias is the same for all keys and drops out."""

    def __init__(self, model: CardAMN) -> None:
        w = weights_of(model)
        gain, shift = w["input_norm.weight"], w["input_norm.bias"]
        self.positions = w["positions"]
        self.query = columns(w["query_encoder.weight"] * gain)  # (768, 256)
        self.query_bias = w["query_encoder.weight"] @ shift
        self.key = w["context_encoder.weight"] * gain * SCORE_SCALE  # (256, 768)
        self.first = columns(w["residual.0.weight"])
        self.second = columns(w["residual.4.weight"] * w["residual.2.weight"])
        self.second_bias = w["residual.4.weight"] @ w["residual.2.bias"]
        self.last = columns(w["residual.7.weight"])

    def __call__(self, x: Tensor) -> Tensor:
        """Contexts (B, 5, 768) -> (B, 768)."""
        z = normal(x + self.positions)  # (B, K, D)
        turned = torch.addmm(self.query_bias, z.mean(1), self.query) @ self.key  # (B, D)
        weights = against(z, turned).softmax(1)  # (B, K)
        joined = join(x, weights)  # (B, 2 D)
        h = F.gelu(joined @ self.first)
        h = F.gelu(torch.addmm(self.second_bias, normal(h), self.second))
        return unit(torch.addmm(joined[:, : x.shape[2]], h, self.last))
