"""python -m bench capacity: what an escalated and a sampled request take, in the workers that end them.

The AMN worker is stopped while the queue is filled, then drains it with a fallback and a shadow worker
beside it. CPU a request is each worker's own time over the entries that it ended: who shares a core
with whom changes how long it takes, and not that. `amn capacity` reads this and other reports.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.machine import cpu_seconds, environment, resident_mb, spread
from bench.publish import KEPT
from bench.report import COLOURS, draw, out_option, write
from bench.service import Service
from ops.capacity import Demand, constants, plant
from ops.clock import server_now_ms
from ops.health import streams, workers
from ops.sample import Sample
from producer.keys import Keys

KINDS = ("fallback", "shadow")
_PATIENCE_S, _SAID_S = 60.0, 1.5


@click.command("capacity")
@click.option("--requests", default=12_000, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option(
    "--draw", "plot", type=click.Path(path_type=Path), help="Only draw what the published report says."
)
@out_option
def command(requests: int, repeats: int, plot: Path | None, out: Path) -> None:
    """Measure; writes capacity.json and capacity.md."""
    if plot is not None:
        draw_plants(plot)
        return
    surroundings = environment()
    runs = []
    for repeat in range(repeats):
        click.echo(f"run {repeat + 1} of {repeats}", err=True)
        runs.append(measured(requests))
    kinds: dict[str, Any] = {
        kind: {name: spread([run[kind][name] for run in runs]) for name in runs[0][kind]} for kind in KINDS
    }
    report = {"environment": surroundings, "requests": requests, "repeats": repeats, "kinds": kinds}
    rows = [{"worker": kind, **kinds[kind]} for kind in KINDS]
    write(out, "capacity", report, rows, f"{requests:,} requests, {repeats} repeats, median (min, max).")


def measured(requests: int) -> dict[str, dict[str, float]]:
    """One run: by kind of worker the entries that it ended, its CPU an entry, and its memory."""
    sample = Sample.load(Path("artifacts/sample/sequences.npz"))
    with Service(fallback=True, shadow=True) as service:
        pids = {"fallback": service.fallbacks[0], "shadow": service.shadows[0]}
        _settle(service)
        before = {kind: (cpu_seconds(pid), _finished(service, kind)) for kind, pid in pids.items()}
        total, _ = service.fill(requests, options=lambda i: sample.options(i % len(sample), "bench"))
        service.drain(total)
        _settle(service)
        found = {}
        for kind, pid in pids.items():
            cpu_s, finished = before[kind]
            ended = _finished(service, kind) - finished
            cpu_us = (cpu_seconds(pid) - cpu_s) / ended * 1e6
            found[kind] = {"entries": float(ended), "cpu_us": cpu_us, "mb": resident_mb(pid)}
        return found


def draw_plants(path: Path) -> None:
    """Draws the plants of a thousand to a million requests a second: cores of each kind, and the rest."""
    known, rates = constants(KEPT), np.geomspace(1e3, 1e6, 60)
    plants = [plant(Demand(rate_per_s=float(rate)), known) for rate in rates]
    panels = {
        "Processes, a core each": {
            "partitions": "servers",
            "amn": "AMN workers",
            "producers": "producers",
            "fallback": "fallback workers",
            "shadow": "shadow workers",
        },
        "Memory and network": {
            "server_gb": "memory of servers, GB",
            "out_gbit_s": "out of servers, Gbit/s",
            "in_gbit_s": "into servers, Gbit/s",
            "worker_gb": "memory of workers, GB",
        },
    }

    def draw_both(axes: Any) -> None:
        for axis, (title, names) in zip(axes, panels.items(), strict=True):
            for (name, label), colour in zip(names.items(), COLOURS, strict=False):
                axis.loglog(rates, [getattr(one, name) for one in plants], color=colour, label=label)
            axis.set(xlabel="requests a second", title=title)
            axis.xaxis.set_major_formatter("{x:,.0f}")
            axis.yaxis.set_major_formatter("{x:,g}")
            axis.grid(alpha=0.3)
            axis.legend(frameon=False)

    draw(path, (9, 3.8), draw_both, columns=2)


def _settle(service: Service) -> None:
    """Waits until nothing is left to do, and every worker has said so."""
    give_up_s = time.monotonic() + _PATIENCE_S
    while any(one.entries for one in streams.read(service.client, Keys(), 0).values()):
        if time.monotonic() > give_up_s:
            raise click.ClickException("entries still wait after a minute: has a worker ended?")
        time.sleep(0.05)
    time.sleep(_SAID_S)


def _finished(service: Service, kind: str) -> int:
    seen = workers.read(service.client, Keys(), server_now_ms(service.client))
    return sum(one.finished for one in seen if one.kind == kind)
