"""python -m bench memory: what an answer of the retrieval layout costs, by the number of entries.

The entries beyond those of the checkpoint are its own in another order and with noise, filed anew: they cost
what real ones cost, and say nothing about accuracy. Calls are made in turn with the other model.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch

from amn.evaluation.latency import times
from amn.model.checkpoint import load
from amn.model.memory import KEY_DIM, Entries
from amn.training.filing import file_entries

_SIZES = (1, 8, 32)


@click.command("memory")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path))
@click.option("--entries", multiple=True, default=(270_000, 540_000), show_default=True)
@click.option(
    "--rounds", default=30, show_default=True, help="Calls of each; the best and the median are said."
)
def command(checkpoint: Path, other: Path, entries: tuple[int, ...], rounds: int) -> None:
    """Compare CHECKPOINT, of the retrieval layout, with OTHER, for memories of several sizes."""
    torch.set_num_threads(1)
    model, beside = load(checkpoint).model, load(other).model
    memory = model.memory
    for count in (len(memory), *entries):
        model.memory = memory if count == len(memory) else enlarged(memory, count)
        for size in _SIZES:
            took = 1e3 * times([model, beside], size, rounds)
            best, median = took.min(axis=0), np.median(took, axis=0)
            click.echo(
                f"{count:>8,} entries, batch {size:>2}: {best[0]:.3f} ms (median {median[0]:.3f}); "
                f"{other.name}: {best[1]:.3f} ({median[1]:.3f})"
            )


def enlarged(memory: Entries, count: int) -> Entries:
    """A memory of so many entries that lie like those of `memory`."""
    draw = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(memory), (count,), generator=draw)
    noise = torch.randint(-3, 4, (count, KEY_DIM), generator=draw, dtype=torch.int8)
    made, flat = Entries(), (memory.rows(drawn) + noise) * memory.key_step
    file_entries(made, flat, memory.nexts[drawn], memory.next_step, 0)
    return made
