"""python -m bench shadow: what the shadow evaluation costs the main path.

One AMN worker drains a full queue of the shipped sample's sequences. Each variant is compared with a
worker that does not sample, in the order A B B A, so that a machine that slows down favours neither.
"off again" is such a worker too, a process of its own: what differs there is the noise of this
measurement, and no smaller difference says anything. AMN workers have one core; servers, shadow
workers (idle class) and this process share the other one (Linux). Where the shadow worker runs, the
throughput therefore holds its share of that core as well; the AMN worker's CPU time a request does not.
"""

from __future__ import annotations

import os
import signal
import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bench.machine import environment, spread
from bench.report import out_option, progress, write
from bench.service import Service
from ops.sample import Sample
from producer.keys import Keys


@dataclass(frozen=True, slots=True)
class Variant:
    """The parts switched on. Each has a service of its own, unless one stops another's shadow worker."""

    name: str
    rate: float
    stopped: bool = False


OFF = Variant("off", 0.0)
VARIANTS = (
    Variant("off again", 0.0),
    Variant("1 %", 0.01),
    Variant("5 %", 0.05),
    Variant("5 %, shadow worker stopped", 0.05, stopped=True),
)
FIGURES = {
    "drain_per_s": "answered/s",
    "worker_cpu_us": "worker CPU",
    "server_cpu_us": "server CPU",
    "main_path_cpu_us": "both",
}
Run = dict[str, float]


@click.command("shadow")
@click.option("--requests", default=3_000, show_default=True, help="Of one run.")
@click.option("--repeats", default=12, show_default=True, help="A B B A of each variant.")
@out_option
def command(requests: int, repeats: int, out: Path) -> None:
    """Measure; writes shadow.json and shadow.md."""
    surroundings = environment()
    sample = Sample.load(Path("artifacts/sample/sequences.npz"))
    found: dict[str, list[tuple[Run, Run]]] = {variant.name: [] for variant in VARIANTS}
    with ExitStack() as stack:
        services = {
            variant.name: stack.enter_context(Service(sample_rate=variant.rate, shadow=variant.rate > 0))
            for variant in (OFF, *VARIANTS)
            if not variant.stopped
        }
        services["5 %, shadow worker stopped"] = services["5 %"]
        for repeat in progress(range(repeats + 1), "rounds", repeats + 1):
            at = repeat % len(VARIANTS)
            for variant in (*VARIANTS[at:], *VARIANTS[:at]):
                order = (OFF, variant, variant, OFF)
                a, b, c, d = [
                    drain(services[one.name], one, sample, requests, f"bench{repeat}") for one in order
                ]
                if repeat:  # the first round warms up
                    found[variant.name].append((_mean(a, d), _mean(b, c)))
    offs = [off for pairs in found.values() for off, _ in pairs]
    report = {
        "environment": surroundings,
        "requests": requests,
        "repeats": repeats,
        "off": {name: spread([run[name] for run in offs]) for name in FIGURES},
        "changes": {name: _compared(pairs) for name, pairs in found.items()},
    }
    rows = [
        {
            "sampling": name,
            "sampled": f"{row['sampled']:.2%}",
            **{text: "{change} ({quartiles})".format(**row[figure]) for figure, text in FIGURES.items()},
        }
        for name, row in report["changes"].items()
    ]
    write(out, "shadow", report, rows, "Changes against a worker that does not sample: median (quartiles).")


def _mean(one: Run, other: Run) -> Run:
    return {name: (one[name] + other[name]) / 2 for name in one}


def _compared(pairs: list[tuple[Run, Run]]) -> dict[str, Any]:
    """Change against the runs without sampling beside it: median and quartiles over the rounds."""
    figures: dict[str, Any] = {"sampled": statistics.median(on["sampled"] for _, on in pairs)}
    for name in FIGURES:
        changes = sorted(on[name] / off[name] - 1 for off, on in pairs)
        low, _, high = statistics.quantiles(changes, n=4) if len(changes) > 1 else [changes[0]] * 3
        figures[name] = {
            "change": f"{statistics.median(changes):+.1%}",
            "quartiles": f"{low:+.1%} to {high:+.1%}",
        }
    return figures


def drain(service: Service, variant: Variant, sample: Sample, requests: int, run: str) -> Run:
    """Fills the queue with the sample's sequences while the AMN worker is stopped, then lets it go."""
    stopped = service.shadows if variant.stopped else []
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        total, _ = service.fill(requests, options=lambda i: sample.options(i % len(sample), run))
        sampled = service.counted("shadowed")
        drained = service.drain(total)
        sampled = service.counted("shadowed") - sampled
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    service.client.xtrim(Keys().shadow, maxlen=0, approximate=False)
    service.forget()
    figures = drained.figures()
    both = figures["worker_cpu_us"] + figures["server_cpu_us"]
    return {**figures, "main_path_cpu_us": both, "sampled": sampled / total}
