"""The time of a prediction by batch size, in the form that workers use (folded), on the present threads."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amn.model.folded import fold

BATCH_SIZES = (1, 8, 32, 128)
ROUNDS = 200
WARM_UP_ROUNDS = 10
#: Once a model took so long, twenty rounds are enough.
SECONDS_MAX = 4.0


def times(models: Sequence[nn.Module], size: int, rounds: int | None = None) -> NDArray[np.float64]:
    """Seconds of each call on `size` contexts, (rounds, models); without `rounds` at most `ROUNDS`.

    The models are called in turn, so that other work on the machine falls on all alike.
    """
    calls = [(fold(model).arrays, trusted_contexts(model, size)) for model in models]
    took, spent = [], 0.0
    for number in range(WARM_UP_ROUNDS + (rounds or ROUNDS)):
        row = []
        for predict, x in calls:
            start = time.perf_counter()
            predict(x)
            row.append(time.perf_counter() - start)
        if number >= WARM_UP_ROUNDS:
            took.append(row)
            spent += sum(row)
        if rounds is None and len(took) >= 20 and spent > SECONDS_MAX * len(models):
            break
    return np.array(took)


def measure(model: nn.Module) -> list[dict[str, float]]:
    """Latency and throughput of a model by batch size."""
    rows = []
    for size in BATCH_SIZES:
        p50, p95 = np.percentile(times([model], size), (50, 95))
        row = {"batch": size, "latency_ms_p50": round(p50 * 1e3, 4), "latency_ms_p95": round(p95 * 1e3, 4)}
        rows.append(
            row | {"us_per_context": round(p50 * 1e6 / size, 1), "contexts_per_s": round(size / p50, 1)}
        )
    return rows


def trusted_contexts(model: nn.Module, size: int) -> NDArray[np.float32]:
    """Random contexts (size, 5, 768) that a model trusts fully, if it asks: those cost the most."""
    draw = torch.Generator().manual_seed(0)
    familiar = [weight for name, weight in model.state_dict().items() if name.endswith("familiar")]
    x = torch.randn(size, 5, len(familiar[0]) if familiar else 768, generator=draw)
    x = x @ familiar[0].float() if familiar else x
    return nn.functional.normalize(x + x.mean(1, keepdim=True), dim=-1).numpy()
