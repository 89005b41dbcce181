"""The attention mixture network in its three layouts.

All take five unit vectors in reading order, (B, 5, 768) float32, and answer the expected
next one, (B, 768), unit norm. `forward(x, return_raw=True)` also gives the vector before
normalisation, which the card's recipe trains on.

    baseline = mean_i x_i
    w        = softmax_i(q(baseline) . k(x_i) / sqrt(256) + ...)
    mixture  = sum_i w_i x_i
    output   = normalise(base + residual([baseline, mixture]))

`CardAMN` is the model card read literally, `PublishedAMN` the network behind published
checkpoints. Both add a free residual to the mean, and on text of an unseen domain that
residual points anywhere: the answer becomes worse than a plain mean. `BoundedAMN` has the
card's size and cost, adds the residual to the *mixture*, limits its length, and withdraws
it where the context lies outside the subspace that the training text spans.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from amn.config import CONTEXT_LENGTH, VECTOR_DIM, ModelConfig
from amn.errors import ShapeError

D, K = VECTOR_DIM, CONTEXT_LENGTH
KEY_DIM = 256
HIDDEN = 512
SCORE_SCALE = KEY_DIM**-0.5

#: Weight of each context position for the next vector, measured on training articles; training starts
#: there and moves it.
POSITION_START = (0.14, 0.12, 0.14, 0.20, 0.40)


def count_parameters(module: nn.Module) -> int:
    """All parameters, also those that gradient descent leaves alone."""
    return sum(parameter.numel() for parameter in module.parameters())


def check_contexts(x: Tensor | NDArray[np.float32]) -> None:
    """Refuse anything but (B, 5, 768): the networks know no other length.

    Raises:
        ShapeError: the tensor has another shape.
    """
    if x.ndim != 3 or x.shape[1] != K or x.shape[2] != D:
        raise ShapeError.of(tuple(x.shape))


def answer(raw: Tensor, return_raw: bool) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise `raw` (B, 768), and keep it beside the result if asked."""
    out = F.normalize(raw, dim=-1)
    return (raw, out) if return_raw else out


def limit(residual: Tensor, bound: float) -> Tensor:
    """Keep the direction of `residual` (B, D), and its length below `bound`."""
    length2 = residual.square().sum(-1, keepdim=True)
    return residual * (bound * torch.rsqrt(length2 + bound * bound))


def attended(query: Tensor, keys: Tensor, x: Tensor) -> Tensor:
    """The mixture of x (B, K, D) by softmax(q . k_i / sqrt(256)), (B, D)."""
    weights = torch.einsum("bd,bkd->bk", query, keys).mul(SCORE_SCALE).softmax(-1)  # (B, K)
    return torch.einsum("bk,bkd->bd", weights, x)


def random_basis(rows: int) -> Tensor:
    """Orthonormal rows (rows, 768), a placeholder until training vectors are known."""
    basis: Tensor = torch.linalg.qr(torch.randn(D, rows))[0]
    return basis.T.contiguous()


class CardAMN(nn.Module):
    """The card's 1,472,768 parameters: positions, input norm, no biases in linear maps."""

    BOTTLENECK = 224

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.positions = nn.Parameter(torch.randn(K, D) * 0.02 * D**-0.5)  # (5, 768)
        self.input_norm = nn.LayerNorm(D)
        self.context_encoder = nn.Linear(D, KEY_DIM, bias=False)
        self.query_encoder = nn.Linear(D, KEY_DIM, bias=False)
        self.residual = nn.Sequential(
            nn.Linear(2 * D, HIDDEN, bias=False),
            nn.GELU(),
            nn.LayerNorm(HIDDEN),
            nn.Dropout(config.dropout),
            nn.Linear(HIDDEN, self.BOTTLENECK, bias=False),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(self.BOTTLENECK, D, bias=False),
        )

    def forward(self, x: Tensor, return_raw: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, 5, 768) -> (B, 768)."""
        check_contexts(x)
        baseline = x.mean(1)  # (B, D)
        z = self.input_norm(x + self.positions)  # (B, K, D)
        mixture = attended(self.query_encoder(z.mean(1)), self.context_encoder(z), x)  # (B, D)
        return answer(baseline + self.residual(torch.cat([baseline, mixture], -1)), return_raw)


class PublishedAMN(nn.Module):
    """1,510,912 parameters under the names of published checkpoints.

    It sees no order: permuting the five vectors does not change the answer.
    """

    BOTTLENECK = 256

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.context_encoder = nn.Linear(D, KEY_DIM)
        self.query_encoder = nn.Linear(D, KEY_DIM)
        self.residual_net = nn.Sequential(
            nn.Linear(2 * D, HIDDEN),
            nn.GELU(),
            nn.LayerNorm(HIDDEN),
            nn.Linear(HIDDEN, self.BOTTLENECK),
            nn.GELU(),
            nn.LayerNorm(self.BOTTLENECK),
            nn.Linear(self.BOTTLENECK, D),
        )

    def forward(self, x: Tensor, return_raw: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, 5, 768) -> (B, 768)."""
        check_contexts(x)
        baseline = x.mean(1)  # (B, D)
        mixture = attended(self.query_encoder(baseline), self.context_encoder(x), x)  # (B, D)
        return answer(baseline + self.residual_net(torch.cat([baseline, mixture], -1)), return_raw)


class Grounded(nn.Module):
    """The base of the bounded layouts: a familiar subspace, trust in it, a limited residual."""

    FAMILIAR_DIM = 90

    config: ModelConfig
    familiar: Tensor  # (90, 768)

    @torch.no_grad()
    def fit_familiar(self, vectors: Tensor) -> None:
        """Set the familiar subspace to the 90 strongest directions of `vectors` (N, 768)."""
        second_moment = vectors.T @ vectors / len(vectors)  # (D, D)
        axes = torch.linalg.eigh(second_moment.double())[1]  # ascending
        self.familiar.copy_(axes[:, -self.FAMILIAR_DIM :].flip(1).T.float())

    def trust(self, baseline: Tensor) -> Tensor:
        """Returns the trust in learned directions for each context, (B, 1) in [0, 1]."""
        inside = F.linear(baseline, self.familiar).square().sum(-1, keepdim=True)
        share = inside / baseline.square().sum(-1, keepdim=True).clamp_min(1e-12)
        low, high = self.config.familiar_low, self.config.familiar_high
        trust = ((share - low) / (high - low)).clamp(0.0, 1.0)
        if self.training and self.config.distrust:
            trust = trust * (torch.rand_like(trust) >= self.config.distrust)
        return trust


class BoundedAMN(Grounded):
    """1,472,768 parameters, spent so that an unfamiliar context still gets a good mixture.

    | part | parameters |
    |---|---|
    | key and query encoder, 2 x (768 x 256) | 393,216 |
    | position scores | 5 |
    | Gram network: ten cosines -> 86 -> five scores | 1,376 |
    | gate on the ten cosines, with its bias | 11 |
    | familiar subspace, 90 orthonormal rows, fitted and then kept | 69,120 |
    | residual: 768 -> 656 with bias, ReLU, -> 768 with bias | 1,009,040 |

    familiarity = share of the baseline's energy inside the familiar subspace, in [0, 1]
    trust       = familiarity rescaled from [familiar_low, familiar_high] to [0, 1], clipped
    scores      = positions + gram(cosines) + trust * q . k_i / 16
    base        = unit(mixture)
    output      = normalise(base + trust * gate * limit(residual(base)))

    limit(r) = r * m / sqrt(m^2 + |r|^2) keeps the direction and a length below m =
    `residual_max`. At trust 0 the answer depends on the ten cosines alone, so it turns with
    the vectors under any rotation: nothing learned about particular directions is used.
    """

    HIDDEN = 656
    GRAM_HIDDEN = 86
    COSINES = K * (K - 1) // 2
    #: Hidden units see a cosine with their own direction; this makes them choosy.
    SHARPNESS = 6.0
    #: Cosines of neighbouring text lie around 0.5; the Gram network trains on (c - 0.5) * 4.
    COSINE_MIDDLE = 0.5
    COSINE_SCALE = 4.0

    pairs: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        projection = torch.linalg.qr(torch.randn(D, KEY_DIM))[0].T * 8.0
        self.context_encoder = nn.Linear(D, KEY_DIM, bias=False)
        self.query_encoder = nn.Linear(D, KEY_DIM, bias=False)
        with torch.no_grad():
            # Equal projections make the first scores a cosine: similar vectors weigh more.
            self.context_encoder.weight.copy_(projection)
            self.query_encoder.weight.copy_(projection)
        self.position_score = nn.Parameter(torch.tensor(POSITION_START).log())  # (5,)
        last = nn.Linear(self.GRAM_HIDDEN, K, bias=False)
        nn.init.zeros_(last.weight)
        self.gram = nn.Sequential(nn.Linear(self.COSINES, self.GRAM_HIDDEN), nn.ReLU(), last)
        self.gate = nn.Linear(self.COSINES, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.familiar = nn.Parameter(random_basis(self.FAMILIAR_DIM), requires_grad=False)
        self.detect = nn.Linear(D, self.HIDDEN)
        self.recall = nn.Linear(self.HIDDEN, D)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.detect.weight, std=0.04)
        nn.init.zeros_(self.detect.bias)
        nn.init.normal_(self.recall.weight, std=0.02)
        nn.init.zeros_(self.recall.bias)
        pairs = torch.triu_indices(K, K, 1)
        self.register_buffer("pairs", pairs[0] * K + pairs[1], persistent=False)  # (10,)

    def forward(self, x: Tensor, return_raw: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, 5, 768) -> (B, 768)."""
        check_contexts(x)
        baseline = x.mean(1)  # (B, D)
        trust = self.trust(baseline)  # (B, 1)
        cosines = torch.bmm(x, x.transpose(1, 2)).flatten(1)[:, self.pairs]
        cosines = (cosines - self.COSINE_MIDDLE) * self.COSINE_SCALE  # (B, 10)
        keys = self.context_encoder(x)  # (B, K, 256)
        query = self.query_encoder(baseline)  # (B, 256)
        content = torch.einsum("bd,bkd->bk", query, keys) * SCORE_SCALE  # (B, K)
        shared = self.position_score + self.gram(cosines)  # (B, K)
        if self.training and self.config.distrust:
            # Only answers without the residual train these scores, or it would bend them.
            shared = torch.where(trust > 0, shared.detach(), shared)
        scores = shared + trust * content  # (B, K)
        mixture = torch.einsum("bk,bkd->bd", scores.softmax(-1), x)  # (B, D)
        base = F.normalize(mixture, dim=-1)  # (B, D)
        hidden = self.dropout(F.relu(self.SHARPNESS * self.detect(base)))  # (B, 656)
        residual = limit(self.recall(hidden), self.config.residual_max)  # (B, D)
        raw = base + trust * self.gate(cosines).sigmoid() * residual
        return answer(raw, return_raw)
