"""python -m bench gate: the reference bank's index against an exact search, cost against agreement.

The queries are predictions of a model for held-out articles and for the unseen domain, in reading order.
One thread, one core. `cost` is processor time a request, so that another process on the core does not
count; of requests that come alone, the wall time stands beside it.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from amn.bank.agreement import WIDTHS, agreement, widened
from amn.bank.bank import Bank, CellBank, Neighbours, exact_top2, load_bank
from amn.bank.settings import IndexSettings
from amn.data.dataset import split_by_article
from amn.data.readers import read_vectors
from amn.evaluation.bank_queries import predictions
from amn.predictor import Predictor
from bench.machine import environment, pinned
from bench.report import out_option, write

SIDES = {"test": "held-out articles", "unseen": "unseen domain"}
BATCHES = (8, 32, 128)
_TIMED = 1024

#: A single pass, as wide as two; for comparison.
SINGLE = ((8, 48, 8, 48, 0.13), (16, 96, 16, 96, 0.13), (32, 192, 32, 192, 0.13), (64, 256, 64, 256, 2.0))


@dataclass(frozen=True, slots=True)
class Queries:
    """Predictions (n, 768) of one side, and what the exact search says of them."""

    vectors: NDArray[np.float32]
    exact: Neighbours


@click.command("gate")
@click.option("--bank", "folder", required=True, type=click.Path(path_type=Path), help="Bank with an index.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Vectors by article.")
@click.option("--model", default="artifacts/lvm/production_model", type=click.Path(path_type=Path))
@click.option("--queries", default=5000, show_default=True, help="Of each side, at most.")
@click.option("--sweep", is_flag=True, help="Other settings too.")
@out_option
def command(out: Path, **options: Any) -> None:
    """Cost and agreement of a bank's index; writes gate.json and gate.md."""
    torch.set_num_threads(1)
    bank = load_bank(options["folder"])
    if not isinstance(bank, CellBank):
        raise click.UsageError(f"{options['folder']} has no index: its search is exact")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as new:
        started = new.submit(opened, options["folder"], options["model"]).result()
    sides = _queries(bank, options)
    own = bank.settings
    others = [widened(own, widths) for widths in (*WIDTHS, *SINGLE)] if options["sweep"] else []
    rows = []
    with threadpool_limits(1), pinned({0}):
        for settings in [own, *others]:
            bank.settings = settings
            row = {"settings": _named(settings), **_cost(bank, sides)}
            row |= {side: asdict(agreement(bank, q.vectors, q.exact)) for side, q in sides.items()}
            rows.append(row)
            click.echo(f"measured: {row['settings']}", err=True)
    report = {
        "environment": environment(),
        "bank": bank.bank_id,
        "count": len(bank),
        "n": {side: len(queries.vectors) for side, queries in sides.items()},
        "agreement_when_built": bank.manifest.agreement,
        "start": started,
        "rows": rows,
    }
    head = (
        f"Bank {bank.bank_id} of {len(bank):,} vectors; queries {report['n']}. Opened and warmed up in "
        f"{started['open_s']} s ({started['cpu_s']} s of processor with all imports); private memory "
        f"{started['private_mb']:.0f} MB."
    )
    write(out, "gate", report, head, [_shown(row) for row in rows])


def _queries(bank: Bank, options: dict[str, Any]) -> dict[str, Queries]:
    """Predictions by side with their exact neighbours."""
    model = Predictor.open(options["model"])
    data = read_vectors(options["data"], model.checkpoint.manifest.encoder_id)
    split = split_by_article(data)
    sides = {}
    for side, text in SIDES.items():
        vectors = predictions(model, data, getattr(split, side), options["queries"])
        click.echo(f"exact search of {len(vectors)} queries, {text}", err=True)
        sides[side] = Queries(vectors, exact_top2(bank.vectors, vectors))
    return sides


def _cost(bank: CellBank, sides: dict[str, Queries]) -> dict[str, Any]:
    """Microseconds a request: processor time by batch size; of requests alone, wall time too."""
    cost = {}
    for side, queries in sides.items():
        vectors = queries.vectors[:_TIMED]
        _timed(bank, vectors, 32)
        cost[side] = {str(size): round(float(np.median(_timed(bank, vectors, size))), 1) for size in BATCHES}
        for name, clock in (("alone", time.thread_time), ("alone_wall", time.perf_counter)):
            alone = _timed(bank, vectors, 1, clock)
            cost[side] |= {f"{name}_p50": round(float(np.median(alone)), 1)}
            cost[side] |= {f"{name}_p95": round(float(np.quantile(alone, 0.95)), 1)}
    return {"cost_us": cost}


def _timed(
    bank: CellBank, vectors: NDArray[np.float32], size: int, clock: Any = time.thread_time
) -> list[float]:
    found = []
    for start in range(0, len(vectors) - size + 1, size):
        part = vectors[start : start + size]
        began = clock()
        bank.top2(part)
        found.append((clock() - began) / size * 1e6)
    return found


def opened(bank: Path, model: Path) -> dict[str, float]:
    """Open both and warm up as a worker does; seconds, and megabytes that this process has written itself."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        began_s = time.perf_counter()
        Predictor.open(model, bank).warm_up(256)
        open_s, cpu_s = time.perf_counter() - began_s, time.process_time()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    private_kb = sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
    return {"open_s": round(open_s, 2), "cpu_s": round(cpu_s, 2), "private_mb": round(private_kb / 1024, 1)}


def _named(settings: IndexSettings) -> str:
    named = f"{settings.probes}/{settings.rerank}"
    if settings.probes < settings.probes_wide:
        named += f" + {settings.probes_wide}/{settings.rerank_wide}"
    return named if settings.within >= 1 else f"{named}, within {settings.within}"


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """Return a row of the table."""
    cost, test, unseen = row["cost_us"]["test"], row["test"], row["unseen"]
    return {
        "cells/candidates": row["settings"],
        **{f"us, batch {size}": f"{cost[str(size)]:.0f}" for size in BATCHES},
        "alone, p50 / p95": f"{cost['alone_p50']:.0f} / {cost['alone_p95']:.0f}",
        "wall": f"{cost['alone_wall_p50']:.0f} / {cost['alone_wall_p95']:.0f}",
        "unseen, 32": f"{row['cost_us']['unseen']['32']:.0f}",
        "agree": f"{test['agree']:.2%}",
        "unsafe keeps": f"{test['unsafe']:.2%}",
        "bias": f"{test['bias']:+.2%}",
        "both right": f"{test['both_right']:.1%}",
        "unseen: agree": f"{unseen['agree']:.2%}",
        "unseen: unsafe": f"{unseen['unsafe']:.2%}",
    }
