"""The time of a prediction by batch size, in the form that workers use (folded).

The only clock of this room besides the date of a run: models are never timed while they
serve, workers do that.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amn.config import PARAMETERS, ModelConfig
from amn.model import checkpoint
from amn.model.folded import fold
from amn.model.layouts import build

Contexts = NDArray[np.float32]

BATCH_SIZES = (1, 8, 32, 128)
ROUNDS = 200
WARM_UP_ROUNDS = 10
SECONDS_MAX = 4.0


def measure(model: nn.Module, batch_sizes: tuple[int, ...] = BATCH_SIZES) -> list[dict[str, float]]:
    """Latency and throughput of a model's fast form by batch size, on the present threads."""
    predict, rows = fold(model).arrays, []
    for size in batch_sizes:
        x = trusted_contexts(model, size)
        for _ in range(WARM_UP_ROUNDS):
            predict(x)
        took: list[float] = []
        while len(took) < ROUNDS and (len(took) < 20 or sum(took) < SECONDS_MAX):
            start = time.perf_counter()
            predict(x)
            took.append(time.perf_counter() - start)
        p50, p95 = np.percentile(took, (50, 95))
        rows.append(
            {
                "batch": size,
                "latency_ms_p50": round(p50 * 1e3, 4),
                "latency_ms_p95": round(p95 * 1e3, 4),
                "us_per_context": round(p50 * 1e6 / size, 1),
                "contexts_per_s": round(size / p50, 1),
            }
        )
    return rows


def trusted_contexts(model: nn.Module, size: int) -> Contexts:
    """Random contexts (size, 5, 768) that a model trusts fully, if it asks: those cost the most."""
    draw = torch.Generator().manual_seed(0)
    familiar = [weight for name, weight in model.state_dict().items() if name.endswith("familiar")]
    x = torch.randn(size, 5, len(familiar[0]) if familiar else 768, generator=draw)
    x = x @ familiar[0].float() if familiar else x
    return nn.functional.normalize(x + x.mean(1, keepdim=True), dim=-1).numpy()


def named(name: str) -> nn.Module:
    """The model of a checkpoint folder; for a layout's name one with fresh weights, which take as long."""
    return build(ModelConfig(layout=name)) if name in PARAMETERS else checkpoint.load(Path(name)).model  # type: ignore[arg-type]


def best_in_turn(models: list[nn.Module], size: int, rounds: int) -> list[float]:
    """Seconds of the best call of each model on `size` contexts that it trusts; the first round warms up.

    Calls are taken in turn and the best of each is kept, so that other work on the machine, which only
    ever adds time, falls on all alike and does not count.
    """
    calls = [(fold(model).arrays, trusted_contexts(model, size)) for model in models]
    best = [float("inf")] * len(calls)
    for number in range(rounds + 1):
        for index, (predict, x) in enumerate(calls):
            start = time.perf_counter()
            predict(x)
            took = time.perf_counter() - start
            if number:
                best[index] = min(best[index], took)
    return best
