"""Small functions that the folded networks share."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def shared(array: NDArray[np.floating]) -> Tensor:
    """A tensor in the array's memory; of a copy where that is read-only, which torch would warn of."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def weights_of(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Float32 copies of a model's weights by name."""
    return {name: value.detach().float().clone().numpy() for name, value in model.state_dict().items()}
