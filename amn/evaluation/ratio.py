"""`python -m amn ratio FAST SLOW`: how many times longer the slower model takes, on this machine.

Calls are taken in turn and the best of each is kept, so that other work on the machine, which only
ever adds time, falls on both alike and does not count. Contexts are such as a model trusts, which cost the
most. A layout's name stands for a model with fresh
weights: how long an answer takes does not depend on them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from amn.config import PARAMETERS, ModelConfig
from amn.evaluation.latency import trusted_contexts
from amn.model import checkpoint
from amn.model.folded import fold
from amn.model.network import build, count_parameters

BATCH_SIZES = (1, 32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the ratio command."""
    parser.add_argument("fast", help="checkpoint folder, or a layout's name")
    parser.add_argument("slow", help="checkpoint folder, or a layout's name, e.g. transformer")
    parser.add_argument("--rounds", type=int, default=36)
    parser.add_argument("--threads", type=int, default=1)


def run_ratio(options: argparse.Namespace) -> int:
    """Time both, print one line a batch size and one of the sizes."""
    torch.set_num_threads(options.threads)
    models = [named(name) for name in (options.fast, options.slow)]
    for size in BATCH_SIZES:
        fast, slow = best_in_turn(models, size, options.rounds)
        sys.stdout.write(
            f"batch {size:>3}: {fast * 1e3:.3f} ms and {slow * 1e3:.3f} ms, {slow / fast:.1f} times\n"
        )
    few, many = (count_parameters(model) for model in models)
    sys.stdout.write(f"parameters: {few:,} and {many:,}, {many / few:.1f} times\n")
    return 0


def named(name: str) -> torch.nn.Module:
    """The model of a checkpoint folder, or a fresh one of a layout."""
    return build(ModelConfig(layout=name)) if name in PARAMETERS else checkpoint.load(Path(name)).model  # type: ignore[arg-type]


def best_in_turn(models: list[torch.nn.Module], size: int, rounds: int) -> list[float]:
    """Seconds of the best call of each model on `size` contexts that it trusts; the first round warms up."""
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
