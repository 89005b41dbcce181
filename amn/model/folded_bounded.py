"""The bounded layout, folded: the fast form of what AMN workers serve.

1. Scores need no projection of the five context vectors: q . (W_k x_i) = (W_k^T q) . x_i, one small
   product a context instead of five. Terms equal for all i leave the softmax.
2. The score scale and the sharpness go into the next matrix.
3. Query and familiar subspace read the same baseline: one matrix product for both.
4. The ten cosines are picked from the flat 5 x 5 Gram matrix by zero weights, not by an index.
5. Where trust is 0 the content scores and the residual are multiplied by it, so a context that the
   model does not trust pays for neither: an eighth of the weights is read.
6. Compiled loops (amn/kernel/bindings.py) take the same steps with weights and vectors as int16: one
   context is limited by the memory that it reads, many by multiplications, and int16 halves both.
   Where they were not built, NumPy serves.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from amn.config import CONTEXT_LENGTH
from amn.data.vectors import unit
from amn.kernel import bindings as kernel
from amn.model.network import SCORE_SCALE, BoundedAMN, check_contexts

K = CONTEXT_LENGTH
Array = NDArray[np.float32]


class FoldedBounded:
    """Two matrices for the mixture and two for the residual, each (out, in), float32.

    Attributes:
        predict: (B, 5, 768) -> (B, 768), unit norm. A second array (B,), float32, is filled with how far
            each context is trusted. Raises ShapeError for contexts of another shape.
    """

    def __init__(self, model: BoundedAMN) -> None:
        w, config = weights_of(model), model.config
        # (share - low) / (high - low); the baseline is a fifth of the sum, which is enough.
        slope = 1.0 / (config.familiar_high - config.familiar_low)
        paired = np.concatenate([w["gram.0.weight"], w["gate.weight"]]) * model.COSINE_SCALE
        bias = np.concatenate([w["gram.0.bias"], w["gate.bias"]])
        gram = np.zeros((K * K, len(paired)), np.float32)  # the last column is the gate
        gram[model.pairs.numpy()] = paired.T
        both = np.concatenate([w["familiar"], w["query_encoder.weight"]])  # (90 + 256, 768)
        matrices: dict[str, Array] = {
            "both": (both / K).astype(np.float32),
            "key": np.ascontiguousarray(w["context_encoder.weight"].T) * SCORE_SCALE,  # (768, 256)
            "detect": w["detect.weight"] * np.float32(model.SHARPNESS),  # (656, 768)
            "recall": w["recall.weight"],  # (768, 656)
        }
        rest = {
            "gram": gram,  # (25, 86 + 1)
            "gram_bias": bias - paired.sum(1) * model.COSINE_MIDDLE,
            "scores": w["gram.2.weight"],  # (5, 86)
            "position": w["position_score"],  # (5,)
            "detect_bias": w["detect.bias"] * np.float32(model.SHARPNESS),
            "recall_bias": w["recall.bias"],
            "familiar": len(w["familiar"]),
            "paired": len(paired) - 1,
            "trust_slope": slope * K * K,
            "trust_offset": -config.familiar_low * slope,
            "residual_max": config.residual_max,
        }
        self.predict: Callable[..., Array]
        if kernel.READY:
            self.predict = kernel.Network(matrices, **rest)
        else:
            self._n = SimpleNamespace(**matrices, **rest)
            self.predict = self._in_numpy

    def _in_numpy(self, x: Array, trusted: Array | None = None) -> Array:
        check_contexts(x)
        n = self._n
        total = x.sum(1)  # (B, D)
        gram = (x @ x.swapaxes(1, 2)).reshape(len(x), K * K)
        projected = total @ n.both.T  # (B, 90 + 256)
        inside = projected[:, : n.familiar]
        # Not the sum of `gram`, which is equal but for rounding: five vectors may nearly cancel.
        share = np.vecdot(inside, inside) / np.maximum(np.vecdot(total, total), 1e-12)
        trust = np.clip(n.trust_offset + n.trust_slope * share, 0.0, 1.0)  # (B,)
        paired = gram @ n.gram + n.gram_bias  # (B, 86 + 1)
        scores = np.maximum(paired[:, :-1], 0.0) @ n.scores.T + n.position  # (B, K)
        rows = np.flatnonzero(trust)  # (T,)
        if len(rows):
            turned = projected[rows, n.familiar :] @ n.key.T  # (T, D)
            scores[rows] += trust[rows, None] * np.vecdot(x[rows], turned[:, None])
        weights = np.exp(scores - scores.max(1, keepdims=True))  # the length of a mixture does not matter
        answers = unit((weights[:, None] @ x)[:, 0])  # (B, D)
        if len(rows):
            hidden = np.maximum(answers[rows] @ n.detect.T + n.detect_bias, 0.0)  # (T, 656)
            residual = hidden @ n.recall.T + n.recall_bias  # (T, D)
            length = np.sqrt(np.vecdot(residual, residual) + n.residual_max**2)
            share = trust[rows] / (1.0 + np.exp(-paired[rows, -1])) * n.residual_max / length
            answers[rows] = unit(answers[rows] + share[:, None] * residual)
        if trusted is not None:
            trusted[:] = trust
        return answers


def weights_of(model: nn.Module) -> dict[str, Array]:
    """Float32 copies of a model's weights by name."""
    return {name: value.detach().float().clone().numpy() for name, value in model.state_dict().items()}
