"""Exact rewrites of the mixture networks for fast inference on a CPU.

Nothing is approximated; sums are only taken in another order, so results agree with the
modules within 1e-5.

1. Scores need no projection of the five context vectors: q . (W_k x_i) = (W_k^T q) . x_i,
   one small product a context instead of five. Terms equal for all i leave the softmax.
2. LayerNorm gains and biases, the score scale and the sharpness go into the next matrix.
3. Query and familiar subspace read the same baseline: one matrix product for both.
4. The ten cosines are picked from the flat 5 x 5 Gram matrix by zero weights, not by an
   index, and the baseline's length is its sum.
5. Mean and mixture are one (2 x 5) product with the context.
6. A single context of the bounded layout takes the same steps in NumPy: calling thirty
   tensor operations on a few numbers each costs more than the arithmetic, and NumPy's
   matrix-vector product reads the weights a third faster than torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from amn.config import CONTEXT_LENGTH
from amn.network import SCORE_SCALE, BoundedAMN, CardAMN, PublishedAMN, check_contexts

K = CONTEXT_LENGTH
Contexts = NDArray[np.float32] | Tensor
Folded = Callable[[Contexts], Tensor]


def fold(model: nn.Module) -> Folded:
    """Make the fast form of a model: contexts (B, 5, 768) float32 -> (B, 768) unit norm.

    The weights are copied, so later training of `model` does not change the result. Models
    without rewrites (GRU, Transformer) run as they are.
    """
    kinds: dict[type, Callable[..., Callable[[Tensor], Tensor]]] = {
        CardAMN: FoldedCard,
        PublishedAMN: FoldedPublished,
        BoundedAMN: FoldedBounded,
    }
    model = model.eval()
    with torch.no_grad():
        forward = kinds[type(model)](model) if type(model) in kinds else model

    def predict(contexts: Contexts) -> Tensor:
        x = torch.from_numpy(contexts) if isinstance(contexts, np.ndarray) else contexts
        check_contexts(x)
        with torch.inference_mode():
            predicted: Tensor = forward(x)
            return predicted

    return predict


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Float32 copies of a model's weights by name."""
    return {name: value.detach().float().clone() for name, value in model.state_dict().items()}


def columns(weight: Tensor) -> Tensor:
    """A Linear's weight (out, in) as (in, out) in memory order, ready for addmm."""
    return weight.t().contiguous()


def unit(raw: Tensor) -> Tensor:
    """Rows of `raw` (B, 768) scaled to norm one."""
    length: Tensor = torch.linalg.vector_norm(raw, dim=1, keepdim=True)
    return raw / length.clamp_min_(1e-12)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """The weights of the bounded layout as NumPy sees them; the memory is shared."""

    query_and_familiar: NDArray[np.float32]
    key: NDArray[np.float32]
    detect: NDArray[np.float32]
    detect_bias: NDArray[np.float32]
    recall: NDArray[np.float32]
    recall_bias: NDArray[np.float32]
    gram: NDArray[np.float32]
    gram_bias: NDArray[np.float32]
    scores: NDArray[np.float32]
    position_score: NDArray[np.float32]
    trust_offset: float


class FoldedBounded:
    """The bounded layout: two matrices for the mixture, two for the residual."""

    def __init__(self, model: BoundedAMN) -> None:
        w, config = weights_of(model), model.config
        self.residual_max = config.residual_max
        self.bound = torch.tensor(config.residual_max)
        # (share - low) / (high - low), with the baseline's length as sum(gram) / 25.
        slope = 1.0 / (config.familiar_high - config.familiar_low)
        self.trust_slope = slope * K * K
        self.trust_offset = torch.tensor(-config.familiar_low * slope)
        self.key_dim = len(w["query_encoder.weight"])
        # Dividing by five here spares the mean: the sum of the context is enough.
        both = torch.cat([w["query_encoder.weight"], w["familiar"]]) / K
        self.query_and_familiar = columns(both)  # (768, 256 + 90)
        self.key = w["context_encoder.weight"] * SCORE_SCALE  # (256, 768)
        paired = torch.cat([w["gram.0.weight"], w["gate.weight"]]) * model.COSINE_SCALE
        spread = torch.zeros(len(paired), K * K)
        spread[:, model.pairs] = paired
        self.gram = columns(spread)  # (25, 86 + 1), the last column is the gate
        shift = paired.sum(1) * model.COSINE_MIDDLE
        self.gram_bias = torch.cat([w["gram.0.bias"], w["gate.bias"]]) - shift
        self.scores = columns(w["gram.2.weight"])  # (86, 5)
        self.position_score = w["position_score"]
        self.detect = columns(w["detect.weight"] * model.SHARPNESS)  # (768, 656)
        self.detect_bias = w["detect.bias"] * model.SHARPNESS
        self.recall, self.recall_bias = columns(w["recall.weight"]), w["recall.bias"]
        self.small = Small(
            query_and_familiar=self.query_and_familiar.numpy(),
            key=self.key.numpy(),
            detect=self.detect.numpy(),
            detect_bias=self.detect_bias.numpy(),
            recall=self.recall.numpy(),
            recall_bias=self.recall_bias.numpy(),
            gram=self.gram.numpy(),
            gram_bias=self.gram_bias.numpy(),
            scores=self.scores.numpy(),
            position_score=self.position_score.numpy(),
            trust_offset=self.trust_offset.item(),
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Contexts (B, 5, 768) -> (B, 768)."""
        return self.one(x[0].numpy()) if len(x) == 1 else self.many(x)

    def one(self, x: NDArray[np.float32]) -> Tensor:
        """One context (5, 768) -> (1, 768)."""
        small = self.small
        projected = x.sum(0) @ small.query_and_familiar  # (256 + 90,)
        turned = projected[: self.key_dim] @ small.key  # (D,)
        familiar = projected[self.key_dim :]
        gram = (x @ x.T).ravel()  # (25,)
        share = float(familiar @ familiar) / max(float(gram.sum()), 1e-12)
        trust = min(max(small.trust_offset + self.trust_slope * share, 0.0), 1.0)
        paired = gram @ small.gram + small.gram_bias  # (86 + 1,)
        scores = np.maximum(paired[:-1], 0.0) @ small.scores
        scores += small.position_score + trust * (x @ turned)  # (K,)
        weights = np.exp(scores - scores.max())
        mixture = weights @ x  # (D,), its length does not matter
        base = mixture / max(float(mixture @ mixture) ** 0.5, 1e-12)
        hidden = np.maximum(base @ small.detect + small.detect_bias, 0.0)
        residual = hidden @ small.recall + small.recall_bias  # (D,)
        bound = self.residual_max
        gate = trust / (1.0 + math.exp(-float(paired[-1])))
        length = (float(residual @ residual) + bound * bound) ** 0.5
        raw = base + (gate * bound / length) * residual
        return torch.from_numpy(raw / max(float(raw @ raw) ** 0.5, 1e-12)).unsqueeze(0)

    def many(self, x: Tensor) -> Tensor:
        """Contexts (B, 5, 768) -> (B, 768)."""
        total = x.sum(1)  # (B, D), five times the baseline
        projected = total @ self.query_and_familiar  # (B, 256 + 90)
        turned = projected[:, : self.key_dim] @ self.key  # (B, D)
        gram = torch.bmm(x, x.transpose(1, 2)).flatten(1)  # (B, 25)
        inside = projected[:, self.key_dim :].square().sum(1, keepdim=True)
        share = inside / gram.sum(1, keepdim=True).clamp_min_(1e-12)
        trust = torch.add(self.trust_offset, share, alpha=self.trust_slope).clamp_(0.0, 1.0)  # (B, 1)
        paired = torch.addmm(self.gram_bias, gram, self.gram)  # (B, 86 + 1)
        scores = torch.addmm(self.position_score, paired[:, :-1].relu(), self.scores)  # (B, K)
        scores = torch.addcmul(scores, trust, against(x, turned))
        mixture = torch.bmm(scores.softmax(1).unsqueeze(1), x).squeeze(1)  # (B, D)
        base = unit(mixture)
        hidden = torch.addmm(self.detect_bias, base, self.detect).relu_()  # (B, 656)
        residual = torch.addmm(self.recall_bias, hidden, self.recall)  # (B, D)
        length = torch.linalg.vector_norm(residual, dim=1, keepdim=True)
        share = trust * paired[:, -1:].sigmoid() / torch.hypot(length, self.bound)
        return unit(torch.addcmul(base, share, residual, value=self.residual_max))


def against(x: Tensor, turned: Tensor) -> Tensor:
    """Dot products (B, 5) of context vectors (B, 5, D) with one vector (B, D) each.

    A batched matrix product has a cost for each item that outgrows an elementwise product
    from about eight contexts on.
    """
    if len(x) < 8:
        return torch.bmm(x, turned.unsqueeze(2)).squeeze(2)
    return (x * turned.unsqueeze(1)).sum(2)


def join(x: Tensor, weights: Tensor) -> Tensor:
    """[mean, mixture] of contexts (B, 5, D) by weights (B, 5), as (B, 2 D)."""
    even = torch.full_like(weights, 1.0 / K)
    return torch.bmm(torch.stack([even, weights], 1), x).flatten(1)


def normal(x: Tensor) -> Tensor:
    """LayerNorm without gain and bias, which were folded into the next matrix."""
    return F.layer_norm(x, x.shape[-1:])
