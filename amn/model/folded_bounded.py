"""The bounded layout, folded: the fast form of what AMN workers serve.

Exact rewrites on top of those of `amn/model/folded.py`, and from 4. on another number format:

1. Query and familiar subspace read the same baseline: one matrix product for both.
2. The ten cosines are picked from the flat 5 x 5 Gram matrix by zero weights, not by an index.
3. Where trust is 0 the content scores and the residual are multiplied by it, so a context
   that the model does not trust pays for neither: an eighth of the weights is read.
4. Compiled loops (amn/kernel/bindings.py) take the same steps with weights and vectors as int16: one
   context is limited by the memory that it reads, many by multiplications, and int16 halves both.
   Where they were not built, up to three contexts go one by one in NumPy: calling thirty tensor
   operations on a few numbers each costs more than the arithmetic, and three matrix-vector products
   take less than one product of a matrix with three rows. More are tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amn.config import CONTEXT_LENGTH
from amn.kernel import bindings as kernel
from amn.model.network import SCORE_SCALE, BoundedAMN
from amn.model.tensors import against, columns, unit, weights_of

K = CONTEXT_LENGTH
Array = NDArray[np.float32]
#: Batches up to this size never become tensors.
FEW: float = math.inf if kernel.READY else 3


class FoldedBounded:
    """Two matrices for the mixture, two for the residual, each stored as (in, out)."""

    def __init__(self, model: BoundedAMN) -> None:
        w, config = weights_of(model), model.config
        self.residual_max = config.residual_max
        self.bound = torch.tensor(config.residual_max)
        # (share - low) / (high - low), with the baseline as a fifth of the sum.
        slope = 1.0 / (config.familiar_high - config.familiar_low)
        self.trust_slope = slope * K * K
        self.trust_offset = -config.familiar_low * slope
        # Dividing by five here spares the mean: the sum of the context is enough.
        self.familiar_dim = len(w["familiar"])
        both = torch.cat([w["familiar"], w["query_encoder.weight"]]) / K
        self.familiar_and_query = columns(both)  # (768, 90 + 256)
        self.key = w["context_encoder.weight"] * SCORE_SCALE  # (256, 768)
        paired = torch.cat([w["gram.0.weight"], w["gate.weight"]]) * model.COSINE_SCALE
        self.gram = torch.zeros(K * K, len(paired))  # (25, 86 + 1), the last column is the gate
        self.gram[model.pairs] = columns(paired)
        shift = paired.sum(1) * model.COSINE_MIDDLE
        self.gram_bias = torch.cat([w["gram.0.bias"], w["gate.bias"]]) - shift
        self.scores = columns(w["gram.2.weight"])  # (86, 5)
        self.position_score = w["position_score"]
        self.detect = columns(w["detect.weight"] * model.SHARPNESS)  # (768, 656)
        self.detect_bias = w["detect.bias"] * model.SHARPNESS
        self.recall, self.recall_bias = columns(w["recall.weight"]), w["recall.bias"]  # (656, 768)
        self.loops = _Loops(self) if kernel.READY else None
        self.few: Callable[[Array], Array] = self.loops or _OneByOne(self)

    def __call__(self, x: Tensor) -> Tensor:
        """Contexts (B, 5, 768) -> (B, 768)."""
        return self.trusted(x)[0]

    def trusted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts (B, 5, 768) -> answers (B, 768) and how far each is trusted, (B,)."""
        total = x.sum(1)  # (B, D), five times the baseline
        gram = torch.bmm(x, x.transpose(1, 2)).flatten(1)  # (B, 25)
        projected = total @ self.familiar_and_query  # (B, 90 + 256)
        inside = projected[:, : self.familiar_dim].square().sum(1)
        # And not the sum of `gram`, which is the same but for rounding: five vectors may nearly cancel.
        share = inside / total.square().sum(1).clamp_min_(1e-12)
        trust = share.mul_(self.trust_slope).add_(self.trust_offset).clamp_(0.0, 1.0)  # (B,)
        paired = torch.addmm(self.gram_bias, gram, self.gram)  # (B, 86 + 1)
        scores = torch.addmm(self.position_score, paired[:, :-1].relu(), self.scores)  # (B, K)
        rows = trust.nonzero().squeeze(1)  # (T,)
        count = len(rows)
        trusted = slice(None) if count == len(x) else rows  # of all of them nothing needs to be copied
        if count:
            scores[trusted] += self._content(x[trusted], projected[trusted], trust[trusted])
        base = unit(torch.bmm(scores.softmax(1).unsqueeze(1), x).squeeze(1))  # (B, D)
        if not count:
            return base, trust
        gate = (trust[trusted] * paired[trusted, -1].sigmoid()).unsqueeze(1)  # (T, 1)
        base[trusted] = unit(self._with_residual(base[trusted], gate))
        return base, trust

    def _content(self, x: Tensor, projected: Tensor, trust: Tensor) -> Tensor:
        """Content scores of trusted contexts, (T, K)."""
        turned = projected[:, self.familiar_dim :] @ self.key  # (T, D)
        return trust.unsqueeze(1) * against(x, turned)

    def _with_residual(self, base: Tensor, gate: Tensor) -> Tensor:
        """Mixtures (T, D) with their residuals, of any length."""
        hidden = torch.addmm(self.detect_bias, base, self.detect).relu_()  # (T, 656)
        residual = torch.addmm(self.recall_bias, hidden, self.recall)  # (T, D)
        length = torch.linalg.vector_norm(residual, dim=1, keepdim=True)
        return torch.addcmul(base, gate / torch.hypot(length, self.bound), residual, value=self.residual_max)


class _Loops:
    """The prediction in compiled loops."""

    def __init__(self, folded: FoldedBounded) -> None:
        self._network = kernel.Network(
            {
                "both": _rows(folded.familiar_and_query),
                "key": _rows(folded.key),
                "detect": _rows(folded.detect),
                "recall": _rows(folded.recall),
            },
            gram=folded.gram.numpy(),
            gram_bias=folded.gram_bias.numpy(),
            scores=_rows(folded.scores),
            position=folded.position_score.numpy(),
            detect_bias=folded.detect_bias.numpy(),
            recall_bias=folded.recall_bias.numpy(),
            familiar=folded.familiar_dim,
            paired=folded.gram.shape[1] - 1,
            trust_slope=folded.trust_slope,
            trust_offset=folded.trust_offset,
            residual_max=folded.residual_max,
        )

    def __call__(self, contexts: Array) -> Array:
        """(B, 5, 768) -> (B, 768)."""
        return self.trusted(contexts)[0]

    def trusted(self, contexts: Array) -> tuple[Array, Array]:
        """(B, 5, 768) -> answers (B, 768) and how far each is trusted, (B,)."""
        return self._network(contexts)


class _OneByOne:
    """The prediction of a few contexts in NumPy."""

    def __init__(self, folded: FoldedBounded) -> None:
        self.residual_max = folded.residual_max
        self.trust_slope, self.trust_offset = folded.trust_slope, folded.trust_offset
        # (out, in): NumPy's matrix-vector product reads that order a third faster.
        both = _rows(folded.familiar_and_query)
        self.familiar, self.query = both[: folded.familiar_dim], both[folded.familiar_dim :]
        self.key = _rows(folded.key)
        self.gram, self.gram_bias = _rows(folded.gram), folded.gram_bias.numpy()
        self.scores, self.position_score = _rows(folded.scores), folded.position_score.numpy()
        self.detect, self.detect_bias = _rows(folded.detect), folded.detect_bias.numpy()
        self.recall, self.recall_bias = _rows(folded.recall), folded.recall_bias.numpy()

    def __call__(self, contexts: Array) -> Array:
        """(B, 5, 768) -> (B, 768)."""
        answers = np.empty((len(contexts), contexts.shape[2]), dtype=np.float32)
        for context, answer in zip(contexts, answers, strict=True):
            self._answer(context, answer)
        return answers

    def _answer(self, x: Array, answer: Array) -> None:
        """One context (5, 768) -> `answer` (768,)."""
        total = x.sum(0)  # (D,)
        gram = (x @ x.T).ravel()  # (25,)
        inside = self.familiar @ total  # (90,)
        share = float(inside @ inside) / max(float(total @ total), 1e-12)
        trust = min(max(self.trust_offset + self.trust_slope * share, 0.0), 1.0)
        paired = self.gram @ gram + self.gram_bias  # (86 + 1,)
        scores = self.scores @ np.maximum(paired[:-1], 0.0) + self.position_score  # (K,)
        if trust:
            scores += trust * (x @ (self.key @ (self.query @ total)))
        mixture = np.exp(scores - scores.max()) @ x  # (D,), its length does not matter
        base = mixture / max(float(mixture @ mixture) ** 0.5, 1e-12)
        if not trust:
            answer[:] = base
            return
        hidden = np.maximum(self.detect @ base + self.detect_bias, 0.0)  # (656,)
        residual = self.recall @ hidden + self.recall_bias  # (D,)
        length = (float(residual @ residual) + self.residual_max * self.residual_max) ** 0.5
        gate = trust / (1.0 + math.exp(-float(paired[-1])))
        raw = base + (gate * self.residual_max / length) * residual
        np.divide(raw, max(float(raw @ raw) ** 0.5, 1e-12), out=answer)


def _rows(weight: Tensor) -> Array:
    """(in, out) as (out, in) in memory order."""
    made: Array = columns(weight).numpy()
    return made
