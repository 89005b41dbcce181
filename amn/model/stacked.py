"""A second stage on top of a finished AMN: better than AMN on text that it knows (docs/models.md).

The first stage is a trained `BoundedAMN` whose weights stay as they are. The second learns what
the first still gets wrong, as boosting does, and only as far as the text is familiar: where AMN
withdraws its residual, the stacked answer is AMN's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amn.config import VECTOR_DIM, ModelConfig
from amn.model.network import BoundedAMN, answer, check_contexts, limit


class StackedAMN(nn.Module):
    """4,620,288 parameters, 1,472,768 of them those of the first stage.

        first  = the frozen AMN's answer
        r      = recall(GELU(detect([first, unit(mean), newest])))
        output = normalise(first + share * trust * limit(r))

    `share` is 1 while training and `residual_share` afterwards: the second stage fits the articles
    it has seen further than others allow, and a part of its correction, chosen on validation
    articles, is better than all of it.
    """

    HIDDEN = 1024
    #: Hidden units see a cosine with their own direction; this makes them choosy.
    SHARPNESS = 6.0

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.first = BoundedAMN(config).requires_grad_(False)
        self.detect = nn.Linear(3 * VECTOR_DIM, self.HIDDEN)
        self.recall = nn.Linear(self.HIDDEN, VECTOR_DIM)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.detect.weight, std=0.04)
        nn.init.zeros_(self.detect.bias)
        # Next to nothing: training starts at the answer of the first stage.
        nn.init.normal_(self.recall.weight, std=0.0005)
        nn.init.zeros_(self.recall.bias)

    def train(self, mode: bool = True) -> StackedAMN:
        """Switches the mode, but leaves the first stage answering as it does when it serves."""
        super().train(mode)
        self.first.eval()
        return self

    def forward(self, x: Tensor, return_raw: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, 5, 768) -> (B, 768)."""
        check_contexts(x)
        baseline = x.mean(1)  # (B, D)
        with torch.no_grad():
            first = self.first(x)  # (B, D)
            trust = self.first.trust(baseline)  # (B, 1)
        seen = torch.cat([first, F.normalize(baseline, dim=-1), x[:, -1]], -1)  # (B, 3 D)
        hidden = self.dropout(F.gelu(self.SHARPNESS * self.detect(seen)))  # (B, 1024)
        residual = limit(self.recall(hidden), self.config.stage_max)  # (B, D)
        share = 1.0 if self.training else self.config.residual_share
        return answer(first + share * trust * residual, return_raw)
