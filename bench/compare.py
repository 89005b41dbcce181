"""python -m bench compare: this queue beside others, the same job, server, model and machine.

Every run has an empty server and fresh workers (bench/systems.py). The systems take turns, in another
order in each repeat, and the headline is the ratio of medians; its spread is that of the repeats' own
ratios. How many jobs each of the others computes at once is in bench/peers/tuned.json: the fastest of its
choices when they were swept; `--only NAME --choice N` tries another one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bench.machine import environment, spread
from bench.report import OTHER_COLOUR, OURS_COLOUR, draw, out_option, progress, write
from bench.systems import OURS, REQUESTS, Run, System, contexts_file, label, run_one

FIGURES = {"drain_per_s": "answered/s", "enqueue_per_s": "enqueued/s"}
CPU = "worker_cpu_us"


@click.command("compare")
@click.option("--repeats", default=5, show_default=True)
@click.option("--workers", default=1, show_default=True, help="Worker processes.")
@click.option("--only", default=",".join(REQUESTS), help="Systems, comma-separated; all by default.")
@click.option("--scale", default=1.0, show_default=True, help="Multiplies the requests of a run.")
@click.option("--written", is_flag=True, help="Others run network and gate as one would write them.")
@click.option("--choice", default="", help="A concurrency to try with --only ONE, instead of the best known.")
@click.option("--minutes", default=60.0, show_default=True, help="No run begins after this.")
@click.option("--name", help="Of the files; compare or compare-written by default.")
@out_option
def command(only: str, written: bool, choice: str, name: str | None, out: Path, **options: Any) -> None:
    """Compare with other queues; writes NAME.json, NAME.md and NAME.svg."""
    name = name or ("compare-written" if written else "compare")
    surroundings, workers = environment(), options["workers"]
    systems = System.load_all(only, choice)
    plan = [(repeat, one) for repeat in range(options["repeats"]) for one in turned(systems, repeat)]
    over_s = time.monotonic() + options["minutes"] * 60
    runs: dict[str, list[dict[str, Any]]] = {}
    failures = {}
    with contexts_file() as contexts:
        for repeat, system in progress(plan, name, len(plan)):
            if time.monotonic() > over_s:
                failures["time"] = f"{options['minutes']:g} minutes were over before all repeats"
                break
            requests = max(int(REQUESTS[system.name] * options["scale"]), 100)
            words = ("--requests", str(requests), "--workers", str(workers))
            run = Run(system=system, contexts=contexts, workers=workers, words=words)
            try:
                row = run_one(run, {"BENCH_WRITTEN": "1"} if written else {})
                runs.setdefault(system.name, []).append({"repeat": repeat, **row})
            except RuntimeError as error:
                failures[system.name] = str(error)
    report = {"environment": surroundings, "written": written, "failures": failures}
    report |= {"workers": workers, "ratios": {str(workers): ratios(runs)}, "systems": summary(runs, systems)}
    write(out, name, report, *told(report))
    bars(report["systems"], out / f"{name}.svg")


def turned(systems: Sequence[System], by: int) -> list[System]:
    """Return the list turned, so that another one comes first."""
    first = by % len(systems)
    return [*systems[first:], *systems[:first]]


def summary(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], systems: Sequence[System]
) -> list[dict[str, Any]]:
    """Return medians and spreads of each system, the fastest first, with what the runs were."""
    found = [
        {
            "system": system.name,
            "repeats": len(runs[system.name]),
            "requests": runs[system.name][0]["requests"],
            "version": system.version,
            "note": system.note,
            "runs": runs[system.name],
            **{figure: spread([run[figure] for run in runs[system.name]]) for figure in (*FIGURES, CPU)},
        }
        for system in systems
        if system.name in runs
    ]
    return sorted(found, key=lambda row: -row["drain_per_s"]["median"])


def ratios(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return ours over the best other one: of medians, and by repeat; {} when one of them is missing."""
    ours = runs.get(OURS)
    others = {name: some for name, some in runs.items() if name != OURS}
    if not ours or not others:
        return {}
    found: dict[str, Any] = {}
    for figure in FIGURES:
        median = {name: statistics.median(run[figure] for run in some) for name, some in others.items()}
        best = max(median, key=median.__getitem__)
        theirs = {run["repeat"]: run[figure] for run in others[best]}
        each = [run[figure] / theirs[run["repeat"]] for run in ours if run["repeat"] in theirs]
        found[figure] = {
            "best": best,
            "of_medians": round(statistics.median(run[figure] for run in ours) / median[best], 2),
            "least": round(min(each), 2) if each else None,
            "most": round(max(each), 2) if each else None,
            "repeats": len(each),
        }
    return found


def told(report: Mapping[str, Any]) -> list[Any]:
    """Return the parts of the text: headline, table, notes."""
    workers, systems = report["workers"], report["systems"]
    heads = [
        f"- {workers} worker process(es), {FIGURES[figure]}: **{ratio['of_medians']:.1f} x** the best of the "
        f"others ({label(ratio['best'])}); by repeat {ratio['least']} to {ratio['most']}, "
        f"n = {ratio['repeats']}"
        for figure, ratio in report["ratios"][str(workers)].items()
    ]
    rows = [
        {
            "system": label(s["system"]),
            **{text: s[figure] for figure, text in FIGURES.items()},
            "worker CPU, us a request": s[CPU],
            "n": s["repeats"],
        }
        for s in systems
    ]
    notes = [f"- {label(s['system'])} ({s['version']}): {s['note']}" for s in systems]
    notes += [f"- not complete: {name}: {why}" for name, why in report["failures"].items()]
    form = "as one would write them" if report["written"] else "in their fast forms"
    last = f"15,360-byte contexts; the others run network and gate {form}; loopback TCP; median (min, max)."
    return ["\n".join(heads), rows, "\n".join(notes), last]


def bars(systems: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw throughput, logarithmic, ours in another colour."""
    systems = systems[::-1]

    def plot(axes: Any) -> None:
        for axis, (figure, title) in zip(axes, FIGURES.items(), strict=True):
            medians = [s[figure]["median"] for s in systems]
            low = [s[figure]["median"] - s[figure]["min"] for s in systems]
            high = [s[figure]["max"] - s[figure]["median"] for s in systems]
            colours = [OURS_COLOUR if s["system"] == OURS else OTHER_COLOUR for s in systems]
            axis.barh([label(s["system"]) for s in systems], medians, xerr=[low, high], color=colours)
            axis.set(xscale="log", xlim=(min(medians) / 3, max(medians) * 4), title=title)
            axis.xaxis.set_minor_formatter("")  # of a narrow range there would be one beside the other
            for i, s in enumerate(systems):
                axis.text(s[figure]["max"] * 1.1, i, f"{s[figure]['median']:,.0f}", va="center", fontsize=8)
        axes[1].set_yticklabels([])

    if systems:
        draw(path, (10, 0.4 * len(systems) + 1.4), plot, columns=2)
