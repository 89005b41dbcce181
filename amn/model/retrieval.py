"""AMN with a memory of what followed similar contexts: the fallback that can look up what no weights hold.

The finished AMN answers first. Its answer and the newest vector together are the key by which a memory of
the training text is asked; of the vectors that followed there, an attention over the context makes a mean,
and a share of it is added. The share grows with how near the neighbours are and how much what followed
them agrees; where the memory knows nothing alike, it is zero, and the answer is AMN's.
Source of the idea: Khandelwal et al. 2020, "Generalization through Memorization", https://arxiv.org/abs/1911.00172.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amn.config import VECTOR_DIM, ModelConfig
from amn.model.memory import KEY_DIM, NEXT_DIM, Entries, Search
from amn.model.network import BoundedAMN, check_contexts, random_basis

#: A neighbour's weight rises from nearly zero at the last of those that are found: then an answer does not
#: jump where a rounding exchanges two of the last ones. With the least, equal neighbours weigh alike.
_RISE, _RISE_MIN = 10.0, 1e-3
#: The larger, the nearer a share that is fitted is to the one that serves.
_SOFT = 40.0


class Recalled(NamedTuple):
    """The neighbours of B contexts, and what followed them.

    Attributes:
        scores: (B, 64) of the neighbours.
        nexts: (B, 64, 256): what followed them, in codes.
        products: (B, 64, 6): of these with AMN's answer and the five context vectors.
    """

    scores: Tensor
    nexts: Tensor
    products: Tensor


class RetrievalAMN(nn.Module):
    """1,816,844 parameters, 1,472,768 of them those of the first stage; and a memory of any size.

        first     = the frozen AMN's answer
        s_i, n_i  = scores and successors of the 64 nearest entries to key_map unit(first + newest)
        w_i       = softmax(attention . [s_i, n_i . first, n_i . x_1, .., n_i . x_5]), to .001 at the last
        follows   = sum w_i n_i
        share     = max(0, trust . [max s, mean s, |follows|, follows . first, 1])
        output    = normalise(first + share * follows)

    `key_map` and `next_map` have orthonormal rows: the main directions of keys and of successors.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.first = BoundedAMN(config).requires_grad_(False)
        self.memory = Entries()
        self.key_map = nn.Parameter(random_basis(KEY_DIM), requires_grad=False)  # (192, 768)
        self.next_map = nn.Parameter(random_basis(NEXT_DIM), requires_grad=False)  # (256, 768)
        self.attention = nn.Parameter(torch.tensor([10.0, 0, 0, 0, 0, 0, 0]))
        self.trust = nn.Parameter(torch.tensor([0.0, 0, 0, 0, 0.2]))

    def forward(self, x: Tensor, return_raw: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, 5, 768) -> (B, 768); compiled loops take the same steps (amn/model/folded_retrieval.py)."""
        check_contexts(x)
        first = self.first(x)
        if not len(self.memory):
            return (first, first) if return_raw else first
        recalled = self.recall(x, first, self.memory.nearest)
        weights = self.weights(recalled.scores, recalled.products)
        follows = torch.bmm(weights[:, None], recalled.nexts)[:, 0] * self.memory.next_step  # (B, 256)
        along = (weights * recalled.products[..., 0]).sum(1)
        share = self.share(recalled.scores, follows.square().sum(1).sqrt(), along)[:, None]
        raw = first + share * (follows @ self.next_map)
        out = torch.where(share > 0, F.normalize(raw, dim=-1), first)  # AMN's bit for bit
        return (raw, out) if return_raw else out

    def keys(self, first: Tensor, newest: Tensor) -> Tensor:
        """The keys of contexts, (B, 192)."""
        return F.normalize(first + newest, dim=-1) @ self.key_map.T

    def recall(self, x: Tensor, first: Tensor, nearest: Search) -> Recalled:
        """Asks the memory."""
        scores, entries = nearest(self.keys(first, x[:, -1]))
        nexts = self.memory.nexts[entries].float()  # (B, 64, 256)
        seen = torch.cat([first[:, None], x], 1) @ self.next_map.T * self.memory.next_step  # (B, 6, 256)
        return Recalled(scores, nexts, nexts @ seen.transpose(1, 2))

    def weights(self, scores: Tensor, products: Tensor) -> Tensor:
        """The neighbours' weights (B, 64), by what `Recalled` has of them."""
        logits = torch.cat([scores[..., None], products], -1) @ self.attention
        rise = 1 - torch.exp(_RISE * (scores.amin(1, keepdim=True) - scores)) + _RISE_MIN
        weights = torch.exp(logits - logits.amax(1, keepdim=True)) * rise
        return weights / weights.sum(1, keepdim=True)

    def share(self, scores: Tensor, length: Tensor, along: Tensor) -> Tensor:
        """The share of what followed, (B,), by its length and its product with AMN's answer, (B,) each."""
        signs = torch.stack([scores.amax(1), scores.mean(1), length, along, torch.ones_like(along)], 1)
        share = signs @ self.trust
        # While it is fitted, what is below zero must still feel a pull.
        return F.softplus(share, beta=_SOFT) if self.training else F.relu(share)

    def examples(self) -> Tensor:
        """At most 4 contexts (n, 5, 768) that the memory knows: each repeats what followed an entry."""
        count = len(self.memory)  # beyond 2^24, float32 would round the last one up
        entries = torch.linspace(0, count - 1, min(count, 4), dtype=torch.float64).long()
        nexts = (self.memory.nexts[entries] * self.memory.next_step) @ self.next_map
        return F.normalize(nexts, dim=-1)[:, None].expand(-1, 5, VECTOR_DIM).contiguous()
