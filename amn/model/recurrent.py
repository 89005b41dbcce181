"""The two slower networks of the model card: a GRU stack and a Transformer.

Same input and output as the mixture network: (B, 5, 768) -> (B, 768) unit norm. Parameter
names follow published checkpoints, so those load as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from amn.config import VECTOR_DIM, ModelConfig
from amn.model.network import POSITION_START, Grounded, answer, check_contexts, limit, random_basis

WIDTH = 512
LAYERS = 4


class GRUBlock(nn.Module):
    """One GRU layer with a residual connection, normalised afterwards."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 5, 512) -> (B, 5, 512)."""
        out: Tensor = self.norm(x + self.dropout(self.gru(x)[0]))
        return out


class GRUStack(nn.Module):
    """Four GRU blocks between two projections; 7,095,552 parameters."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.input_proj = nn.Linear(VECTOR_DIM, WIDTH)
        self.blocks = nn.ModuleList([GRUBlock(WIDTH, config.dropout) for _ in range(LAYERS)])
        self.output_proj = nn.Linear(WIDTH, VECTOR_DIM)

    def forward(self, x: Tensor, return_raw: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, 5, 768) -> (B, 768)."""
        check_contexts(x)
        h = self.input_proj(x)  # (B, K, 512)
        for block in self.blocks:
            h = block(h)
        return answer(self.output_proj(h[:, -1]), return_raw)


class BoundedGRU(Grounded, GRUStack):
    """The GRU stack's parameters, its output used as a limited residual of a fixed mixture.

    Alone the stack answers anything on an unseen domain. Here it corrects the mixture with
    the five constant position weights, as far as the context is familiar:

        output = normalise(unit(sum_i w_i x_i) + trust * limit(stack(x)))

    The familiar subspace is a fitted statistic kept as a buffer, like a running mean; the
    7,095,552 parameters are those of the plain stack.
    """

    start: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.register_buffer("familiar", random_basis(self.FAMILIAR_DIM))  # (90, 768)
        self.register_buffer("start", torch.tensor(POSITION_START), persistent=False)  # (5,)

    def forward(self, x: Tensor, return_raw: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, 5, 768) -> (B, 768)."""
        residual, _ = super().forward(x, return_raw=True)  # (B, D)
        base = functional.normalize(torch.einsum("k,bkd->bd", self.start, x), dim=-1)
        trust = self.trust(x.mean(1))  # (B, 1)
        return answer(base + trust * limit(residual, self.config.residual_max), return_raw)


class SinusoidalPositions(nn.Module):
    """Adds fixed sine and cosine positions; published checkpoints store the table."""

    LENGTH_MAX = 100

    pe: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        position = torch.arange(self.LENGTH_MAX).unsqueeze(1)  # (100, 1)
        rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
        table = torch.zeros(1, self.LENGTH_MAX, width)
        table[0, :, 0::2] = torch.sin(position * rate)
        table[0, :, 1::2] = torch.cos(position * rate)
        self.register_buffer("pe", table)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, width) -> the same shape."""
        return x + self.pe[:, : x.shape[1]]


class TransformerPredictor(nn.Module):
    """Four decoder layers that attend to the context itself; 17,867,520 parameters.

    The context is both the target sequence and the memory, with a causal mask on both
    attentions: that is how published checkpoints were trained.
    """

    HEADS = 8
    FEED_FORWARD = 2048

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.input_proj = nn.Linear(VECTOR_DIM, WIDTH)
        self.pos_encoder = SinusoidalPositions(WIDTH)
        layer = nn.TransformerDecoderLayer(
            WIDTH, self.HEADS, self.FEED_FORWARD, dropout=config.dropout, batch_first=True
        )
        self.transformer_decoder = nn.TransformerDecoder(layer, LAYERS)
        self.head = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VECTOR_DIM)
        )

    def forward(self, x: Tensor, return_raw: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, 5, 768) -> (B, 768)."""
        check_contexts(x)
        h = self.pos_encoder(self.input_proj(x))  # (B, K, 512)
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1], device=h.device)
        h = self.transformer_decoder(h, h, tgt_mask=mask, memory_mask=mask)
        return answer(self.head(h[:, -1]), return_raw)
