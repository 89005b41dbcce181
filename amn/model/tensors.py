"""Small tensor functions that the folded networks share."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from amn.config import CONTEXT_LENGTH


def shared(array: NDArray[np.floating]) -> Tensor:
    """A tensor in the array's memory; of a copy where that is read-only, which torch would warn of."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


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
    even = torch.full_like(weights, 1.0 / CONTEXT_LENGTH)
    return torch.bmm(torch.stack([even, weights], 1), x).flatten(1)


def normal(x: Tensor) -> Tensor:
    """LayerNorm without gain and bias, which were folded into the next matrix."""
    return F.layer_norm(x, x.shape[-1:])
