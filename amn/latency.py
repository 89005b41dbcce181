"""How long a prediction takes, by batch size, in the form that workers use (folded).

The only clock of this room besides the date of a run: models are never timed while they
serve, workers do that.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from amn.folded import Folded

BATCH_SIZES = (1, 8, 32, 128)
ROUNDS = 200
WARM_UP_ROUNDS = 10
SECONDS_MAX = 4.0


def measure(predict: Folded, batch_sizes: tuple[int, ...] = BATCH_SIZES) -> list[dict[str, float]]:
    """Latency and throughput of `predict` for each batch size, on the present threads."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for size in batch_sizes:
        x = torch.randn(size, 5, 768, generator=draw) + torch.randn(size, 1, 768, generator=draw)
        took = time_calls(predict, torch.nn.functional.normalize(x, dim=-1))
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


def time_calls(predict: Folded, x: torch.Tensor) -> list[float]:
    """Seconds of each call after a warm-up; slow models get fewer calls."""
    for _ in range(WARM_UP_ROUNDS):
        predict(x)
    took: list[float] = []
    while len(took) < ROUNDS and (len(took) < 20 or sum(took) < SECONDS_MAX):
        start = time.perf_counter()
        predict(x)
        took.append(time.perf_counter() - start)
    return took
