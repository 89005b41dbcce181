"""The job that every system does: one context through model and gate, the answer as bytes.

The fast forms of both are a part of this project, and are given to the others too. With BENCH_WRITTEN the
others do what somebody without this project would: the modules as written, the gate as one product.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from amn.predictor import Predictor

URL = os.environ.get("BENCH_URL", "redis://127.0.0.1:6379/0")
CONTEXT_BYTES = 5 * 768 * 4
#: With this in the environment each answer ends with the time at which it was computed.
STAMPED = bool(os.environ.get("BENCH_STAMP"))
#: With this one the others run network and gate as somebody would write them, not their fast forms.
WRITTEN = bool(os.environ.get("BENCH_WRITTEN"))
ROOT = Path(__file__).resolve().parents[2] / "artifacts" / "lvm"


@lru_cache(maxsize=1)
def predictor() -> Predictor:
    """Model and bank, loaded and warm; called by each worker before its first job."""
    torch.set_num_threads(1)
    loaded = Predictor.open(ROOT / "production_model", ROOT / "reference_bank")
    loaded.warm_up(1)
    return loaded


def chosen() -> str:
    """The concurrency that the harness asks for (bench/systems.py)."""
    return os.environ.get("BENCH_CHOICE", "1")


def in_chunks(contexts: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Yield 64 contexts at a time, which is what our own producer sends a call."""
    return (contexts[first : first + 64] for first in range(0, len(contexts), 64))


def work_of(context: bytes) -> bytes:
    """The job of every system: `answer`, with its time when latency is measured.

    Raises:
        ValueError: The context has another size.
    """
    found = answer(context)
    return found + struct.pack("<d", time.time()) if STAMPED else found


@torch.inference_mode()
def as_written(model: Predictor, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(1, 5, 768) -> (1, 768), by the modules themselves."""
    return model.checkpoint.model(torch.from_numpy(rows)).numpy()  # type: ignore[no-any-return]


def two_best(references: NDArray[np.float32], vector: NDArray[np.float32]) -> tuple[float, float]:
    """(N, 768) references, (768,) vector -> best and second best cosine, by a product with all of them."""
    second, best = np.partition(references @ vector, -2)[-2:]
    return float(best), float(second)


def answer(context: bytes) -> bytes:
    """A (5, 768) float32 context -> the (768,) prediction and its two best cosines, float32.

    Raises:
        ValueError: The context has another size.
    """
    if len(context) != CONTEXT_BYTES:
        raise ValueError(f"context has {len(context)} bytes; expected {CONTEXT_BYTES}")
    model = predictor()
    assert model.bank is not None
    rows = np.frombuffer(context, dtype="<f4").reshape(1, 5, 768).copy()
    if WRITTEN:
        vectors = as_written(model, rows)
        scores = two_best(model.bank.vectors, vectors[0])
    else:
        vectors = model.forward(rows)
        near = model.bank.top2(vectors)
        scores = float(near.best[0]), float(near.second[0])
    return vectors.tobytes() + struct.pack("<2f", *scores)
