"""python -m bench gate: the reference bank's index against an exact search, cost against agreement.

The queries are predictions of a model for held-out articles and for the unseen domain, in reading order.
One thread, one core. `cost` is processor time a request, so that another process on the core does not
count; of requests that come alone, the wall time stands beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from amn.bank.exact import exact_top2
from amn.bank.index import CellBank
from amn.bank.index_settings import IndexSettings
from amn.bank.index_tune import WIDTHS, agreement, widened
from amn.bank.neighbours import Bank, Neighbours
from amn.bank.open import load_bank
from amn.data.dataset import split_by_article
from amn.data.readers import read_vectors
from amn.evaluation.bank_queries import predictions
from amn.predictor import Predictor
from bench.machine import environment, pinned
from bench.report import write

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
@click.option("--out", type=click.Path(path_type=Path), default=Path("var/bench"), show_default=True)
def command(out: Path, **options: Any) -> None:
    """Cost and agreement of a bank's index; writes gate.json and gate.md."""
    torch.set_num_threads(1)
    bank = load_bank(options["folder"])
    if not isinstance(bank, CellBank):
        raise click.UsageError(f"{options['folder']} has no index: its search is exact")
    started = _started(options["folder"], options["model"])
    sides = _queries(bank, options)
    own = bank.settings
    rows = []
    with threadpool_limits(1), pinned({0}):
        for settings in [own, *_sweep(own)] if options["sweep"] else [own]:
            bank.settings = settings
            row = {"settings": _named(settings), **_cost(bank, sides)}
            row |= {side: asdict(agreement(bank, q.vectors, q.exact)) for side, q in sides.items()}
            rows.append(row)
            click.echo(_line(row), err=True)
    report = {
        "environment": environment(),
        "bank": bank.bank_id,
        "count": len(bank),
        "n": {side: len(queries.vectors) for side, queries in sides.items()},
        "agreement_when_built": bank.manifest.agreement,
        "start": started,
        "rows": rows,
    }
    write(out, "gate", report, _table(report) + "\n")


def _sweep(own: IndexSettings) -> list[IndexSettings]:
    return [widened(own, widths) for widths in (*WIDTHS, *SINGLE)]


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


def _started(bank: Path, model: Path) -> dict[str, float]:
    """Measures the time and the private memory of a process that opens both."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "bench.gate_start", str(bank), str(model)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found: dict[str, float] = json.loads(ended.stdout)
    return found | {"process_s": round(time.perf_counter() - began, 2)}


def _named(settings: IndexSettings) -> str:
    named = f"{settings.probes}/{settings.rerank}"
    if settings.probes < settings.probes_wide:
        named += f" + {settings.probes_wide}/{settings.rerank_wide}"
    return named if settings.within >= 1 else f"{named}, within {settings.within}"


def _line(row: dict[str, Any]) -> str:
    cost, test, unseen = row["cost_us"]["test"], row["test"], row["unseen"]
    return (
        f"| {row['settings']} | {cost['8']:.0f} | {cost['32']:.0f} | {cost['128']:.0f} "
        f"| {cost['alone_p50']:.0f} / {cost['alone_p95']:.0f} "
        f"| {cost['alone_wall_p50']:.0f} / {cost['alone_wall_p95']:.0f} "
        f"| {row['cost_us']['unseen']['32']:.0f} "
        f"| {test['agree']:.2%} | {test['unsafe']:.2%} | {test['bias']:+.2%} | {test['both_right']:.1%} "
        f"| {unseen['agree']:.2%} | {unseen['unsafe']:.2%} |"
    )


def _table(report: dict[str, Any]) -> str:
    start = report["start"]
    head = (
        f"bank {report['bank']}, {report['count']} vectors; queries {report['n']}; "
        f"load before {report['environment']['load_before']}\n"
        f"opened and warmed up in {start['open_s']} s ({start['cpu_s']} s of processor with all imports); "
        f"private memory {start['private_mb']:.0f} MB, after 2,000 requests "
        f"{start['private_later_mb']:.0f} MB\n\n"
        "| cells/candidates | us, batch 8 | 32 | 128 | alone, p50 / p95 | wall | unseen, 32 | agree "
        "| unsafe keeps | bias | both right | unseen: agree | unsafe |\n" + "|---" + "|---:" * 12 + "|"
    )
    return "\n".join([head, *map(_line, report["rows"])])
