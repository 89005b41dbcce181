"""Small synthetic documents for tests of the model room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amn.config import Layout, ModelConfig
from amn.data.vectors import VectorSet
from amn.model.layouts import build
from ops.app import run

ENCODER = "a-test/mean/l2"
DOMAINS = ("alpha", "beta", "gamma", "anarchism")


def articles(count: int = 40, length: int = 12, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Arrays of a vector file: articles of four domains, each row near its article's topic."""
    draw = np.random.default_rng(seed)
    domain = np.array([DOMAINS[i % len(DOMAINS)] for i in range(count)])
    centre = {name: draw.standard_normal(768) for name in DOMAINS}
    rows = []
    for name in domain:
        topic = centre[name] + draw.standard_normal(768)
        rows.append(topic + draw.standard_normal((length, 768)))
    vectors = np.concatenate(rows)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return {
        "vectors": vectors.astype(np.float16),
        "article": np.repeat(np.arange(count, dtype=np.int32), length),
        "article_domain": domain,
        "article_name": np.array([f"page-{i}" for i in range(count)]),
        "encoder": np.array(ENCODER),
    }


def vector_set(**changes: Any) -> VectorSet:
    """The synthetic articles as a VectorSet, with some arrays replaced."""
    arrays = articles() | changes
    return VectorSet(**{"encoder_id": str(arrays.pop("encoder")), "source": "synthetic"} | arrays)


def write_npz(folder: Path, **changes: Any) -> Path:
    """The synthetic articles as a file."""
    path = folder / "vectors.npz"
    np.savez(path, **(articles() | changes))
    return path


def amn(*words: object) -> int:
    """The command `amn` with these words; its exit code."""
    return run([str(word) for word in words])


def contexts(n: int, seed: int = 0, topic: float = 1.0) -> Tensor:
    """Unit contexts (n, 5, 768) that share a topic within each."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, 768, generator=draw) + topic * torch.randn(n, 1, 768, generator=draw)
    return nn.functional.normalize(x, dim=-1)


def made(layout: Layout, **settings: Any) -> nn.Module:
    """A network with the same stirred weights every time."""
    torch.manual_seed(1)
    return stir(build(ModelConfig(layout=layout, **settings)))


def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move every trained weight a little, so that nothing is left at zero or one."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()
