"""python -m bench peer-latency: the latency of other systems against load, beside ours.

Each runs with one worker on a core of its own (bench/peers/pace.py says how it is timed, in its favour)
and stops at the first rate that it cannot keep up with. The plot takes our curve from latency.json of the
same folder, where all of the answer's way is counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from hdrh.histogram import HdrHistogram

from bench.compare import label
from bench.curves import curve
from bench.latency import percentiles
from bench.machine import environment, spread
from bench.report import facts, markdown, shown, write
from bench.systems import Run, System, contexts_file, run_one

#: The three that drain fastest, of those with a synchronous call for one request.
SYSTEMS = "dramatiq_threads,huey_thread,celery_solo"
RATES = "100,500,1000,2000,5000"
SHOWN = ("ms_p50", "ms_p95", "ms_p99")


@click.command("peer-latency")
@click.option("--only", default=SYSTEMS, show_default=True, help="Systems, comma-separated.")
@click.option("--rates", default=RATES, show_default=True)
@click.option("--seconds", default=6.0, show_default=True, help="Of each rate.")
@click.option("--repeats", default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("var/bench"), show_default=True)
def command(only: str, rates: str, seconds: float, repeats: int, out: Path) -> None:
    """Latency of other queues against load; writes peer-latency.json, .md and .svg."""
    surroundings, systems = environment(), [System.load(name) for name in only.split(",")]
    runs: dict[str, list[dict[str, Any]]] = {system.name: [] for system in systems}
    with contexts_file() as contexts:
        for repeat in range(repeats):
            for system in systems:
                click.echo(f"{system.name}, run {repeat + 1}", err=True)
                run = Run(
                    system=system,
                    contexts=contexts,
                    program="pace",
                    words=("--rates", rates, "--seconds", str(seconds), "--seed", str(repeat)),
                    surroundings={"BENCH_STAMP": "1"},
                )
                try:
                    runs[system.name].append(reduced(run_one(run)))
                except RuntimeError as error:
                    click.echo(f"{system.name}: {error}", err=True)
    found = {name: joined(some) for name, some in runs.items()}
    report = {"environment": surroundings, "seconds": seconds, "repeats": repeats, "systems": found}
    ours = out / "latency.json"
    ours_too = {"amn-queue": json.loads(ours.read_text("utf-8"))["rates"]} if ours.is_file() else {}
    write(out, "peer-latency", report, table(report))
    kept = {label(name): row["rates"] for name, row in found.items() if row["rates"]}
    curve({**ours_too, **kept}, out / "peer-latency.svg")


def reduced(row: Mapping[str, Any]) -> dict[str, Any]:
    """Percentiles instead of all times."""
    rates = [
        {"rate": r["rate"], "answered_per_s": round(r["answered_per_s"], 1), **_percentiles(r["ms"])}
        for r in row["rates"]
    ]
    return {"closed": _percentiles(row["closed_ms"]), "rates": rates}


def _percentiles(ms: Sequence[float]) -> dict[str, float]:
    histogram = HdrHistogram(1, 60_000_000, 3)
    for one in ms:
        histogram.record_value(max(int(one * 1000), 1))
    return percentiles(histogram)


def joined(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median, least and most of the repeats, by rate."""
    by_rate: dict[float, list[Mapping[str, Any]]] = {}
    for run in runs:
        for row in run["rates"]:
            by_rate.setdefault(row["rate"], []).append(row)
    rates = [
        {
            "rate": rate,
            "runs": len(some),
            "answered_per_s": float(np.median([row["answered_per_s"] for row in some])),
            **{name: spread([row[name] for row in some], 3) for name in SHOWN},
        }
        for rate, some in sorted(by_rate.items())
    ]
    closed = {name: spread([run["closed"][name] for run in runs], 3) for name in SHOWN} if runs else {}
    return {"closed": closed, "rates": rates}


def table(report: Mapping[str, Any]) -> str:
    """Markdown."""
    lines, rows = [], []
    for name, system in report["systems"].items():
        if not system["rates"]:
            lines.append(f"- {label(name)} did not come to its end")
            continue
        closed = ", ".join(f"{p[3:]} {shown(system['closed'][p], 2)}" for p in SHOWN)
        lines.append(f"- {label(name)}, one request at a time: {closed} ms")
        for row in system["rates"]:
            rates = (f"{row['rate']:,.0f}", f"{row['answered_per_s']:,.0f}")
            rows.append((label(name), *rates, *(shown(row[p], 2) for p in SHOWN), str(row["runs"])))
    heads = ("system", "offered/s", "answered/s", "p50 ms", "p95 ms", "p99 ms", "n")
    lines += ["", *markdown(heads, rows), ""]
    lines.append(
        f"One worker, Poisson arrivals, n runs of {report['seconds']:g} s a rate, from due to computed, "
        f"loopback TCP. A run ends with the first rate that it cannot keep up with. {facts(report)}"
    )
    return "\n".join(lines) + "\n"
