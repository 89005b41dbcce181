"""python -m bench latency: what a request waits for its AMN answer, against the offered load.

Open loop with Poisson arrivals: the clock of a request starts when it is due, not when the sender got
round to it, so that a stall counts for everybody it delayed. Closed loop: one request at a time. Server,
workers (AMN, fallback, shadow) and the sender share this machine; nothing is pinned.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from hdrh.histogram import HdrHistogram

from bench.curves import OBJECTIVE_MS, curve, fast_until, per_second
from bench.machine import environment, spread
from bench.report import facts, markdown, shown, write
from ops.local.server import ServerSettings
from ops.local.stack import Stack, StackSettings
from ops.run.traffic import TrafficSender, TrafficSettings
from ops.sample import Sample
from producer import Producer, ProducerSettings
from producer.keys import Keys
from producer.transport.connection import connect
from workers.pool.served import pin, read_links
from workers.settings import artifacts_root

RATES = "100,500,1000,2000,5000,60%"
PERCENTILES = (50, 95, 99, 99.9)
CHUNK = 64
#: A percentile with fewer requests beyond it in a run says little.
BEYOND = 5
_HIGHEST_US = 60_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The load that is offered.

    Attributes:
        rates: Requests a second; "60%" is a share of what saturates.
        seconds: Of each rate.    repeats: Of all rates, in turns.    closed: Requests of the closed loop.
    """

    rates: Sequence[str]
    seconds: float
    repeats: int
    closed: int = 1000


@click.command("latency")
@click.option("--rates", default=RATES, show_default=True, help="Requests/s, or % of saturation.")
@click.option("--seconds", default=8.0, show_default=True, help="Of each rate.")
@click.option("--repeats", default=3, show_default=True, help="Of all rates, in turns.")
@click.option("--workers", default=1, show_default=True, help="AMN workers.")
@click.option("--policy", default="calibrated", show_default=True, help="Preset or file.")
@click.option("--bank", type=click.Path(path_type=Path, exists=True), help="A reference bank of your own.")
@click.option("--name", default="latency", show_default=True, help="Of the files.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("var/bench"), show_default=True)
def command(bank: Path | None, name: str, out: Path, **options: Any) -> None:
    """Latency against load; writes NAME.json, NAME.md and NAME.svg."""
    load = Load(rates=options["rates"].split(","), seconds=options["seconds"], repeats=options["repeats"])
    surroundings = environment()
    with tempfile.TemporaryDirectory() as folder:
        settings = StackSettings(
            url=None,
            server=ServerSettings(),
            counts={"amn": options["workers"], "fallback": 1, "shadow": 1},
            queue="bench",
            policy=options["policy"],
            artifacts=with_bank(bank, Path(folder)) if bank else artifacts_root(),
        )
        with Stack(settings) as stack:
            found = measure(stack, load)
    report = {
        "environment": surroundings,
        "workers": settings.counts,
        "bank": bank.name if bank else "shipped",
        "references": references(bank or artifacts_root() / "reference_bank"),
        "seconds": load.seconds,
        **found,
    }
    write(out, name, report, table(report))
    curve({"amn-queue": report["rates"]}, out / f"{name}.svg", report["saturation_per_s"])


def measure(stack: Stack, load: Load) -> dict[str, Any]:
    """Warm-up, closed loop, saturation, then the rates in turns, up to the first beyond saturation."""
    sample = Sample.load(Path("artifacts/sample/sequences.npz"))
    _run(stack, sample, TrafficSettings(requests=2_000, rate=0, run_id="warm"))
    closed = closed_loop(stack, sample, load.closed)
    full = spread([saturated(stack, sample, 10_000) for _ in range(load.repeats)], 0)
    asked = sorted({per_second(text, full["median"]) for text in load.rates})
    below = sum(rate <= full["median"] for rate in asked)
    rates = asked[: below + 1]  # and the first one that is too much
    runs: dict[float, list[dict[str, Any]]] = {rate: [] for rate in rates}
    for repeat in range(load.repeats):
        for rate in rates:
            click.echo(f"{rate:g} requests/s, run {repeat + 1}", err=True)
            requests = max(int(rate * load.seconds), 100)
            traffic = TrafficSettings(
                requests=requests,
                rate=rate,
                poisson=True,
                in_flight_max=8192,
                run_id=f"r{rate:g}.{repeat}",
                seed=repeat,
            )
            runs[rate].append(_run(stack, sample, traffic))
    return {
        "closed": closed,
        "saturation_per_s": full["median"],
        "saturation": full,
        "left_out": [rate for rate in asked if rate not in rates],
        "rates": [summary(rate, some) for rate, some in runs.items()],
    }


def closed_loop(stack: Stack, sample: Sample, count: int) -> dict[str, float]:
    """One client, one request at a time: submit, wait, read."""
    histogram = HdrHistogram(1, _HIGHEST_US, 3)
    with Producer(settings=_settings(stack)) as producer:
        for i in range(count):
            handle_at_s = time.perf_counter()
            producer.submit(sample.context(i), provisional=True).first()
            histogram.record_value(int((time.perf_counter() - handle_at_s) * 1e6))
    return percentiles(histogram)


def saturated(stack: Stack, sample: Sample, count: int) -> float:
    """AMN answers a second, final or provisional, when all requests are sent at once."""
    settings = replace(_settings(stack), in_flight_max=count + CHUNK)
    with connect(settings) as client, Producer(settings=settings) as producer:

        def ended() -> int:
            values: Any = client.hmget(Keys(settings.queue).stats, ["answered:amn", "escalated"])
            return sum(int(value or 0) for value in values)

        began, started_s = ended(), time.perf_counter()
        for first in range(0, count, CHUNK):
            numbers = range(first, first + CHUNK)
            options = [sample.options(i, f"full{began}") for i in numbers]
            handles = producer.submit_many([sample.context(i) for i in numbers], options=options)
        while ended() - began < count:
            time.sleep(0.005)
        elapsed_s = time.perf_counter() - started_s
        handles[-1].result()  # the fallback has its turn before the next run
        return count / elapsed_s


def summary(rate: float, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One rate: of each percentile the median, least and most of the repeats."""
    return {
        "rate": rate,
        "answered_per_s": statistics.median(run["answered_per_s"] for run in runs),
        "failed": sum(run["failed"] for run in runs),
        "escalated_share": statistics.median(run["escalated_share"] for run in runs),
        **{f"ms_p{p:g}": spread([run[f"ms_p{p:g}"] for run in runs], 3) for p in PERCENTILES},
        "histograms": [run["histogram"] for run in runs],
    }


def with_bank(bank: Path, folder: Path) -> Path:
    """The artifacts, with another reference bank."""
    root = pin(read_links(artifacts_root()), artifacts_root(), folder / "artifacts")
    (root / "reference_bank").unlink()
    (root / "reference_bank").symlink_to(bank.resolve())
    return root


def references(bank: Path) -> int:
    """Returns the number of vectors in a bank."""
    from amn.bank.open import load_bank

    return len(load_bank(bank))


def told(row: Mapping[str, Any], percentile: float, count: float) -> str:
    """A percentile of `count` requests a run, if there are enough of them."""
    enough = count * (100 - percentile) / 100 >= BEYOND
    return shown(row[f"ms_p{percentile:g}"], 2) if enough else "-"


def percentiles(histogram: HdrHistogram) -> dict[str, float]:
    """Milliseconds, from microseconds."""
    return {f"ms_p{p:g}": histogram.get_value_at_percentile(p) / 1000 for p in PERCENTILES}


def _settings(stack: Stack) -> ProducerSettings:
    return ProducerSettings(url=stack.url, queue=stack.settings.queue)


def _run(stack: Stack, sample: Sample, settings: TrafficSettings) -> dict[str, Any]:
    with Producer(settings=_settings(stack)) as producer:
        traffic = TrafficSender(producer, sample, settings)
        gc.collect()
        gc.freeze()  # a walk over all that was ever imported would be booked on the queue
        record = traffic.run()
        gc.unfreeze()
    histogram = HdrHistogram(1, _HIGHEST_US, 3)
    waited_ms = record.amn_ms + record.send_lag_ms
    for waited in waited_ms[np.isfinite(waited_ms)]:
        histogram.record_value(max(int(waited * 1000), 1))
    return {
        "answered_per_s": round(record.answered / record.elapsed_s, 1),
        "failed": record.failed,
        "escalated_share": round(float(record.escalated.mean()), 4),
        **percentiles(histogram),
        "histogram": histogram.encode().decode(),
    }


def table(report: Mapping[str, Any]) -> str:
    """Markdown."""
    saturation, held = report["saturation_per_s"], fast_until(report["rates"])
    closed = ", ".join(f"{name[3:]} {value:.2f}" for name, value in report["closed"].items())
    lines = [
        f"Bank of {report['references']:,} references. Saturation: {saturation:,.0f} answers/s with "
        f"{report['workers']['amn']} AMN worker(s). p95 holds {OBJECTIVE_MS} ms up to {held:,.0f} "
        f"requests/s, {held / saturation:.0%} of it. One request at a time: {closed} ms.",
        "",
    ]
    heads = ("offered/s", "ended/s", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms", "escalated", "failed")
    rows = [
        (
            f"{row['rate']:,.0f}",
            f"{row['answered_per_s']:,.0f}",
            *(told(row, p, row["rate"] * report["seconds"]) for p in PERCENTILES),
            f"{row['escalated_share']:.1%}",
            str(row["failed"]),
        )
        for row in report["rates"]
    ]
    lines += markdown(heads, rows)
    repeats = len(report["rates"][0]["histograms"])
    if report["left_out"]:
        lines += [
            "",
            f"Not run: {', '.join(f'{rate:,.0f}' for rate in report['left_out'])}.",
        ]
    lines += [
        "",
        f"Poisson arrivals, {repeats} runs of {report['seconds']:g} s of each rate in turns: median (min, "
        f"max) from due to received, AMN answers, unix socket; `ended` is with the fallback's; `-` where a "
        f"run has fewer than {BEYOND} slower ones. "
        f"{facts(report)}",
    ]
    return "\n".join(lines) + "\n"
