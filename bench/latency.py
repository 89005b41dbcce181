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
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bench.curves import (
    BEYOND,
    OBJECTIVE_MS,
    curve,
    fast_until,
    per_second,
    percentiles,
    rows_shown,
    spreads,
)
from bench.machine import environment, spread
from bench.report import out_option, shown, write
from ops.local.server import ServerSettings
from ops.local.stack import Stack
from ops.run.traffic import TrafficSender, TrafficSettings
from ops.sample import Sample
from producer import Producer, ProducerSettings
from producer.keys import Keys
from producer.transport.connection import connect
from workers.pool.served import pin, read_links
from workers.pool.settings import PoolSettings
from workers.settings import artifacts_root

CHUNK = 64
CLOSED, FULL = 1_000, 10_000


@click.command("latency")
@click.option("--rates", default="100,500,1000,2000,5000,60%", show_default=True, help="Or % of saturation.")
@click.option("--seconds", default=8.0, show_default=True, help="Of each rate.")
@click.option("--repeats", default=3, show_default=True, help="Of all rates, in turns.")
@click.option("--workers", default=1, show_default=True, help="AMN workers.")
@click.option("--alone", is_flag=True, help="Without fallback and shadow worker.")
@click.option("--policy", default="calibrated", show_default=True, help="Preset or file.")
@click.option("--bank", type=click.Path(path_type=Path, exists=True), help="A reference bank of your own.")
@click.option("--name", default="latency", show_default=True, help="Of the files.")
@out_option
def command(bank: Path | None, name: str, out: Path, **options: Any) -> None:
    """Latency against load; writes NAME.json, NAME.md and NAME.svg."""
    surroundings = environment()
    with tempfile.TemporaryDirectory() as folder:
        artifacts = with_bank(bank, Path(folder)) if bank else artifacts_root()
        settings = PoolSettings(url="", queue="bench", policy=options["policy"], artifacts=artifacts)
        beside = int(not options["alone"])
        counts = {"amn": options["workers"], "fallback": beside, "shadow": beside}
        with Stack(counts, settings, ServerSettings()) as stack:
            found = Measurement(stack).run(
                options["rates"].split(","), options["seconds"], options["repeats"]
            )
    report = {
        "environment": surroundings,
        "workers": counts,
        "bank": bank.name if bank else "shipped",
        "references": references(bank or artifacts_root() / "reference_bank"),
        "seconds": options["seconds"],
        "repeats": options["repeats"],
        **found,
    }
    write(out, name, report, headline(report), rows_shown(report["rates"], report["seconds"]), note(report))
    curve({"amn-queue": report["rates"]}, out / f"{name}.svg", report["saturation_per_s"])


class Measurement:
    """The measurements of one running stack."""

    def __init__(self, stack: Stack) -> None:
        self._settings = ProducerSettings(url=stack.settings.url, queue=stack.settings.queue)
        self._sample = Sample.load(Path("artifacts/sample/sequences.npz"))

    def run(self, asked: list[str], seconds: float, repeats: int) -> dict[str, Any]:
        """Warm up, then measure the closed loop, saturation, and the rates up to the first beyond it."""
        self._open_loop(TrafficSettings(requests=2_000, rate=0, run_id="warm"))
        closed = self._closed_loop()
        full = spread([self._saturated() for _ in range(repeats)], 0)
        wanted = sorted({per_second(text, full["median"]) for text in asked})
        rates = wanted[: sum(rate <= full["median"] for rate in wanted) + 1]
        runs: dict[float, list[dict[str, Any]]] = {rate: [] for rate in rates}
        for repeat in range(repeats):
            for rate in rates:
                click.echo(f"{rate:g} requests/s, run {repeat + 1}", err=True)
                traffic = TrafficSettings(
                    requests=max(int(rate * seconds), 100),
                    rate=rate,
                    poisson=True,
                    in_flight_max=8192,
                    run_id=f"r{rate:g}.{repeat}",
                    seed=repeat,
                )
                runs[rate].append(self._open_loop(traffic))
        return {
            "closed": closed,
            "saturation_per_s": full["median"],
            "saturation": full,
            "left_out": wanted[len(rates) :],
            "rates": [
                {
                    "rate": rate,
                    "answered_per_s": statistics.median(run["answered_per_s"] for run in some),
                    **spreads(some),
                    "escalated_share": statistics.median(run["escalated_share"] for run in some),
                    "failed": sum(run["failed"] for run in some),
                }
                for rate, some in runs.items()
            ],
        }

    def _closed_loop(self) -> dict[str, float]:
        """One client, one request at a time: submit, wait, read."""
        waited_ms = []
        with Producer(settings=self._settings) as producer:
            for i in range(CLOSED):
                started_s = time.perf_counter()
                producer.submit(self._sample.context(i), provisional=True).first()
                waited_ms.append((time.perf_counter() - started_s) * 1000)
        return percentiles(waited_ms)

    def _saturated(self) -> float:
        """AMN answers a second, final or provisional, when all requests are sent at once."""
        settings = replace(self._settings, in_flight_max=FULL + CHUNK)
        with connect(settings) as client, Producer(settings=settings) as producer:

            def ended() -> int:
                values: Any = client.hmget(Keys(settings.queue).stats, ["answered:amn", "escalated"])
                return sum(int(value or 0) for value in values)

            began, started_s = ended(), time.perf_counter()
            for first in range(0, FULL, CHUNK):
                numbers = range(first, first + CHUNK)
                options = [self._sample.options(i, f"full{began}") for i in numbers]
                handles = producer.submit_many([self._sample.context(i) for i in numbers], options=options)
            while ended() - began < FULL:
                time.sleep(0.005)
            elapsed_s = time.perf_counter() - started_s
            handles[-1].result()  # the fallback has its turn before the next run
            return FULL / elapsed_s

    def _open_loop(self, settings: TrafficSettings) -> dict[str, Any]:
        with Producer(settings=self._settings) as producer:
            traffic = TrafficSender(producer, self._sample, settings)
            gc.collect()
            gc.freeze()  # a walk over all that was ever imported would be booked on the queue
            record = traffic.run()
            gc.unfreeze()
        return {
            "answered_per_s": round(record.answered / record.elapsed_s, 1),
            "failed": record.failed,
            "escalated_share": round(float(record.escalated.mean()), 4),
            **percentiles(record.amn_ms + record.send_lag_ms),
        }


def with_bank(bank: Path, folder: Path) -> Path:
    """Return the artifacts, with another reference bank."""
    root = pin(read_links(artifacts_root()), artifacts_root(), folder / "artifacts")
    (root / "reference_bank").unlink()
    (root / "reference_bank").symlink_to(bank.resolve())
    return root


def references(bank: Path) -> int:
    """Return the number of vectors in a bank."""
    from amn.bank.bank import load_bank

    return len(load_bank(bank))


def headline(report: Mapping[str, Any]) -> str:
    """Return the figures without a rate."""
    saturation, held = report["saturation_per_s"], fast_until(report["rates"])
    closed = ", ".join(f"{name[3:]} {shown(value)}" for name, value in report["closed"].items())
    return (
        f"Bank of {report['references']:,} references. Saturation: {saturation:,.0f} answers/s with "
        f"{report['workers']['amn']} AMN worker(s). p95 holds {OBJECTIVE_MS} ms up to {held:,.0f} "
        f"requests/s, {held / saturation:.0%} of it. One request at a time: {closed} ms."
    )


def note(report: Mapping[str, Any]) -> str:
    """Return what the rows are."""
    left_out = ", ".join(f"{rate:,.0f}" for rate in report["left_out"])
    return (
        f"Poisson arrivals, {report['repeats']} runs of {report['seconds']:g} s of each rate in turns: "
        "median (min, max) from due to received, AMN answers, unix socket; what is answered is with the "
        f"fallback's; `-` where a run has fewer than {BEYOND} slower ones."
    ) + (f" Not run: {left_out}." if left_out else "")
