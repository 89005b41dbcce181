"""python -m bench latency: what a request waits for its AMN answer, against the offered load.

Open loop with Poisson arrivals; the clock of a request starts when it is due, not when the sender
got round to it, so that a stall counts for everybody it delayed. Server, workers (AMN, fallback,
shadow) and the sender share this machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from hdrh.histogram import HdrHistogram

from bench.machine import environment
from ops.sample import Sample
from ops.server import ServerSettings
from ops.stack import Stack, StackSettings
from ops.traffic import Traffic, TrafficSettings
from producer import Producer, ProducerSettings
from workers.settings import artifacts_root

RATES = "100,500,1000,2000,5000"
PERCENTILES = (50, 95, 99, 99.9)
OBJECTIVE_MS = 1.2


@click.command("latency")
@click.option("--rates", default=RATES, show_default=True, help="Requests per second, comma-separated.")
@click.option("--seconds", default=20.0, show_default=True, help="Of each rate.")
@click.option("--workers", default=1, show_default=True, help="AMN workers.")
@click.option("--policy", default="calibrated", show_default=True, help="Preset or file.")
@click.option("--artifacts", type=click.Path(path_type=Path), default=None, help="Models and bank.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("var/bench"), show_default=True)
def command(rates: str, seconds: float, workers: int, policy: str, artifacts: Path | None, out: Path) -> None:
    """Latency against load; writes latency.json, latency.md and latency.svg."""
    counts = {"amn": workers, "fallback": 1, "shadow": 1}
    settings = StackSettings(
        url=None,
        server=ServerSettings(),
        counts=counts,
        queue="bench",
        policy=policy,
        artifacts=artifacts or artifacts_root(),
    )
    sample = Sample.load(Path("artifacts/sample/sequences.npz"))
    with Stack(settings) as stack:
        saturation = _run(stack, sample, TrafficSettings(requests=20_000, rate=0, run_id="full"))
        rows = []
        for rate in (float(text) for text in rates.split(",")):
            click.echo(f"{rate:g} requests/s", err=True)
            requests = max(int(rate * seconds), 100)
            traffic = TrafficSettings(requests=requests, rate=rate, poisson=True, run_id=f"r{rate:g}")
            rows.append({"rate": rate, **_run(stack, sample, traffic)})
    report = {
        "environment": environment(),
        "workers": counts,
        "saturation_per_s": saturation["answered_per_s"],
        "rates": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "latency.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    text = table(report)
    (out / "latency.md").write_text(text, "utf-8")
    curve(rows, float(saturation["answered_per_s"]), out / "latency.svg")
    click.echo(text)


def _run(stack: Stack, sample: Sample, settings: TrafficSettings) -> dict[str, float]:
    with Producer(settings=ProducerSettings(url=stack.url, queue=stack.settings.queue)) as producer:
        traffic = Traffic(producer, sample, settings)
        timing = traffic.run(lambda _: None, lambda: None)
    tally = traffic.tally
    histogram = HdrHistogram(1, 60_000_000, 3)  # microseconds
    waited_ms = tally.amn_ms + timing.send_lag_ms
    for waited in waited_ms[np.isfinite(waited_ms)]:
        histogram.record_value(max(int(waited * 1000), 1))
    percentiles = {f"ms_p{p:g}": histogram.get_value_at_percentile(p) / 1000 for p in PERCENTILES}
    return {
        "requests": settings.requests,
        "answered": tally.answered,
        "failed": tally.failed,
        "answered_per_s": round(tally.answered / timing.elapsed_s, 1),
        "escalated_share": round(float(tally.escalated.mean()), 4),
        **percentiles,
    }


def table(report: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"Saturation: {report['saturation_per_s']:,.0f} answers/s, AMN workers: {report['workers']['amn']}.",
        "",
        "| offered/s | answered/s | p50 ms | p95 ms | p99 ms | p99.9 ms | failed |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["rates"]:
        waits = " | ".join(f"{row[f'ms_p{p:g}']:.2f}" for p in PERCENTILES)
        lines.append(f"| {row['rate']:,.0f} | {row['answered_per_s']:,.0f} | {waits} | {row['failed']} |")
    facts = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    lines += ["", f"Poisson arrivals, from due to received, AMN answers, unix socket. {facts}."]
    return "\n".join(lines) + "\n"


def curve(rows: Sequence[Mapping[str, float]], saturation_per_s: float, path: Path) -> None:
    """Percentiles against load, both logarithmic, with objective and saturation."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4))
    rates = [row["rate"] for row in rows]
    for p, colour in zip(PERCENTILES, ("#94a3b8", "#c2410c", "#7c3aed", "#0f766e"), strict=True):
        axis.plot(rates, [row[f"ms_p{p:g}"] for row in rows], marker="o", label=f"p{p:g}", color=colour)
    axis.axhline(OBJECTIVE_MS, color="#334155", linewidth=1, linestyle="--")
    axis.annotate(f"objective {OBJECTIVE_MS} ms", (rates[0], OBJECTIVE_MS), va="bottom", fontsize=8)
    axis.axvline(saturation_per_s, color="#334155", linewidth=1, linestyle=":")
    axis.set(xscale="log", yscale="log", xlabel="offered requests/s", ylabel="ms from due to received")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
