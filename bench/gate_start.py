"""python -m bench.gate_start BANK MODEL: a process that opens both as a worker does, and what that takes.

Prints one JSON object. Memory is what this process has written itself, not what it maps from files and
shares with others.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

_REQUESTS = 2000


def main(bank: Path, model: Path) -> None:
    """Loads, warms up, answers."""
    import numpy as np
    import torch
    from threadpoolctl import threadpool_limits

    from amn.predictor import Predictor

    torch.set_num_threads(1)
    threadpool_limits(1)
    began = time.perf_counter()
    predictor = Predictor.open(model, bank)
    predictor.warm_up(256)
    opened_s = time.perf_counter() - began
    assert predictor.bank is not None
    ready = {"cpu_s": time.process_time(), "open_s": opened_s, "private_mb": private_mb()}
    random = np.random.default_rng(0)
    rows = np.sort(random.choice(len(predictor.bank), _REQUESTS, replace=False))
    queries = np.asarray(predictor.bank.vectors[rows])
    queries += random.normal(size=queries.shape).astype(np.float32) / 40
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    for start in range(0, len(queries), 32):
        predictor.bank.top2(queries[start : start + 32])
    found = {name: round(value, 2) for name, value in ready.items()}
    click.echo(json.dumps(found | {"private_later_mb": private_mb()}))


def private_mb() -> float:
    """Memory of this process alone."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return float("nan")
    private = [int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")]
    return round(sum(private) / 1024, 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
