"""python -m bench peer-latency: latency of other queues against load, beside what `latency` wrote of ours.

Among them is a bare loop, which is no queue: what the others take longer is theirs. Arrivals and rates are
those of `latency`. An answer counts when it is computed, not when it is fetched (bench/peers/runner.py); one
worker, loopback TCP, the concurrency that drains fastest.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bench.curves import curve, percentiles, spreads
from bench.machine import environment
from bench.report import out_option, shown, write
from bench.systems import BARE, Run, System, contexts_file, label, run_one

#: A bare loop, and the three that drain fastest, of those with a synchronous call for one request.
SYSTEMS = f"{BARE},dramatiq_threads,huey_thread,celery_solo"


@click.command("peer-latency")
@click.option("--only", default=SYSTEMS, show_default=True, help="Systems, comma-separated.")
@click.option("--rates", default="100,500,1000,2000,5000", show_default=True)
@click.option("--seconds", default=6.0, show_default=True, help="Of each rate.")
@click.option("--repeats", default=2, show_default=True)
@out_option
def command(only: str, rates: str, seconds: float, repeats: int, out: Path) -> None:
    """Latency of other queues against load; writes peer-latency.json, .md and .svg."""
    surroundings, systems = environment(), System.load_all(only)
    runs: dict[str, list[dict[str, Any]]] = {system.name: [] for system in systems}
    with contexts_file() as contexts:
        for repeat in range(repeats):
            for system in systems:
                click.echo(f"{system.name}, run {repeat + 1}", err=True)
                words = ("--rates", rates, "--seconds", str(seconds), "--seed", str(repeat))
                try:
                    row = run_one(Run(system=system, contexts=contexts, words=words), {"BENCH_STAMP": "1"})
                    runs[system.name].append(row)
                except RuntimeError as error:
                    click.echo(f"{system.name}: {error}", err=True)
    found = {name: joined(some) for name, some in runs.items() if some}
    report = {"environment": surroundings, "seconds": seconds, "repeats": repeats, "systems": found}
    closed = "\n".join(
        f"- {label(name)}, one request at a time: "
        + ", ".join(f"{p[3:]} {shown(ms)}" for p, ms in found[name]["closed"].items())
        + " ms"
        if name in found
        else f"- {label(name)} did not come to its end"
        for name in runs
    )
    rows = [{"system": label(name), **row} for name, some in found.items() for row in some["rates"]]
    note = (
        f"One worker, Poisson arrivals, {seconds:g} s a rate and run: median (min, max) from due to "
        "computed, loopback TCP. A run ends with the first rate that it cannot keep up with."
    )
    write(out, "peer-latency", report, closed, rows, note)
    ours = out / "latency.json"
    ours_too = {"amn-queue": json.loads(ours.read_text("utf-8"))["rates"]} if ours.is_file() else {}
    curve(
        {**ours_too, **{label(name): row["rates"] for name, row in found.items()}}, out / "peer-latency.svg"
    )


def joined(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return median, least and most of the repeats, by rate and of one request at a time."""
    by_rate: dict[float, list[Mapping[str, Any]]] = {}
    for run in runs:
        for row in run["rates"]:
            by_rate.setdefault(row["rate"], []).append(row)
    rates = [
        {
            "rate": rate,
            "runs": len(some),
            "answered_per_s": statistics.median(row["answered_per_s"] for row in some),
            **spreads([percentiles(row["ms"]) for row in some]),
        }
        for rate, some in sorted(by_rate.items())
    ]
    return {"closed": spreads([percentiles(run["closed_ms"]) for run in runs]), "rates": rates}
