"""python -m bench compare: this queue beside others, the same job, server, model and machine.

Every run has an empty server and fresh workers (bench/systems.py). The systems take turns, in another
order in each repeat, and the headline is the ratio of medians; its spread is that of the repeats' own
ratios. Each run is a line of compare.jsonl: called again, the command goes on where it broke off,
and refuses rows of another machine or commit.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from bench.machine import environment, spread
from bench.report import OTHER_COLOUR, OURS_COLOUR, draw, facts, markdown, shown, write
from bench.rows import Rows
from bench.systems import OURS, REQUESTS, Run, System, contexts_file, run_one
from ops.console import err

FIGURES = ("drain_per_s", "enqueue_per_s")
CPU = "worker_cpu_us"
_SHOWN = {"drain_per_s": "answered/s", "enqueue_per_s": "enqueued/s"}


@click.command("compare")
@click.option("--repeats", default=5, show_default=True)
@click.option("--workers", default="1", show_default=True, help="Worker processes, comma-separated.")
@click.option("--only", default="", help="Systems, comma-separated; all by default.")
@click.option("--scale", default=1.0, show_default=True, help="Multiplies the requests of a run.")
@click.option("--written", is_flag=True, help="Others run network and gate as one would write them.")
@click.option("--minutes", default=60.0, show_default=True, help="No run begins after this.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("var/bench"), show_default=True)
def command(only: str, written: bool, out: Path, **options: Any) -> None:
    """Compare with other queues; writes compare.jsonl, .json, .md and .svg, or compare-written.*."""
    repeats, scale, minutes = options["repeats"], options["scale"], options["minutes"]
    report_name = "compare-written" if written else "compare"
    names = only.split(",") if only else list(REQUESTS)
    if unknown := set(names) - set(REQUESTS):
        raise click.BadParameter(f"unknown systems {sorted(unknown)}; known: {', '.join(REQUESTS)}")
    systems = [System.load(name, out, written=written) for name in names]
    rows = Rows(out / f"{report_name}.jsonl", environment())
    failures = failed_before(out / f"{report_name}.json", options["workers"])
    plan = [
        (repeat, int(count), system)
        for repeat in range(repeats)
        for count in options["workers"].split(",")
        for system in turned(systems, repeat)
    ]
    plan = [p for p in plan if not rows.has(repeat=p[0], workers=p[1], system=p[2].name)]
    over_s = time.monotonic() + minutes * 60
    with contexts_file() as contexts, Progress(console=err()) as progress:
        task = progress.add_task("", total=len(plan))
        for repeat, count, system in plan:
            if time.monotonic() > over_s:
                failures[f"time, {count}"] = f"{minutes:g} minutes were over before all repeats"
                break
            progress.update(task, description=f"{system.name}, {count} worker(s), run {repeat + 1}")
            words = ("--requests", str(max(int(REQUESTS[system.name] * scale), 100)))
            try:
                run = Run(
                    system=system,
                    contexts=contexts,
                    workers=count,
                    words=words,
                    surroundings={"BENCH_WRITTEN": "1"} if written else {},
                )
                row = run_one(run)
                rows.add({"system": system.name, "workers": count, "repeat": repeat, **row})
            except RuntimeError as error:
                failures[f"{system.name}, {count}"] = str(error)
            progress.advance(task)
    about = {s.name: (s.version, s.note) for s in systems}
    report = {"environment": rows.surroundings, "written": written, **summary(rows, about, failures)}
    write(out, report_name, report, table(report))
    bars(report, out / f"{report_name}.svg")


def failed_before(path: Path, workers: str) -> dict[str, str]:
    """What an earlier call in this folder noted, of other numbers of workers."""
    found: dict[str, str] = json.loads(path.read_text("utf-8"))["failures"] if path.is_file() else {}
    again = workers.split(",")
    return {name: why for name, why in found.items() if name.rpartition(", ")[2] not in again}


def turned(systems: Sequence[System], by: int) -> list[System]:
    """The same, beginning with another one."""
    first = by % len(systems)
    return [*systems[first:], *systems[:first]]


def summary(
    rows: Iterable[Mapping[str, Any]], about: Mapping[str, tuple[str, str]], failures: Mapping[str, str]
) -> dict[str, Any]:
    """What the report is made of: medians and spreads by system and workers, and our ratios."""
    runs: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        runs.setdefault((row["system"], row["workers"]), []).append(row)
    systems = [
        {
            "system": name,
            "workers": workers,
            "repeats": len(some),
            "requests": some[0]["requests"],
            "version": about.get(name, ("", ""))[0],
            "note": about.get(name, ("", ""))[1],
            **{figure: spread([run[figure] for run in some]) for figure in (*FIGURES, CPU)},
        }
        for (name, workers), some in runs.items()
    ]
    counts = sorted({workers for _, workers in runs})
    found = {str(count): ratios(runs, count) for count in counts}
    return {"systems": systems, "ratios": found, "failures": dict(failures)}


def ratios(runs: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]], workers: int) -> dict[str, Any]:
    """Ours over the best other one: of medians, and by repeat; {} when one of them is missing."""
    ours = runs.get((OURS, workers))
    others = {name: some for (name, count), some in runs.items() if count == workers and name != OURS}
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


def table(report: Mapping[str, Any]) -> str:
    """Markdown, the fastest first."""
    lines = []
    for workers, found in report["ratios"].items():
        for figure, ratio in found.items():
            lines.append(
                f"- {workers} worker process(es), {_SHOWN[figure]}: **{ratio['of_medians']:.1f} x** the best "
                f"of the others ({label(ratio['best'])}); by repeat {ratio['least']} to {ratio['most']}, "
                f"n = {ratio['repeats']}"
            )
    heads = ("system", "workers", "answered/s, median (min, max)", "enqueued/s, median (min, max)")
    heads += ("worker CPU, us a request", "n")
    order = sorted(report["systems"], key=lambda s: (s["workers"], -s["drain_per_s"]["median"]))
    rows = [
        (
            label(s["system"]),
            str(s["workers"]),
            shown(s["drain_per_s"]),
            shown(s["enqueue_per_s"]),
            shown(s[CPU]),
            str(s["repeats"]),
        )
        for s in order
    ]
    lines += ["", *markdown(heads, rows), ""]
    lines += [f"- {label(s['system'])} ({s['version']}): {s['note']}" for s in order if s["workers"] == 1]
    form = "as one would write them" if report["written"] else "in their fast forms"
    lines += [f"- not complete: {name}: {why}" for name, why in report["failures"].items()]
    lines += [
        "",
        f"15,360-byte contexts; the others run network and gate {form}; loopback TCP. {facts(report)}",
    ]
    return "\n".join(lines) + "\n"


def bars(report: Mapping[str, Any], path: Path) -> None:
    """Throughput with one worker, logarithmic, ours in another colour."""
    systems = sorted(
        (s for s in report["systems"] if s["workers"] == 1), key=lambda s: s["drain_per_s"]["median"]
    )
    if not systems:
        return

    def plot(axes: Any) -> None:
        for axis, figure in zip(axes, FIGURES, strict=True):
            _bars(axis, systems, figure)
            axis.set_title(f"{_SHOWN[figure]}, one worker" if figure == "drain_per_s" else _SHOWN[figure])
        axes[1].set_yticklabels([])

    draw(path, (10, 0.4 * len(systems) + 1.4), plot, columns=2)


def _bars(axis: Any, systems: Sequence[Mapping[str, Any]], figure: str) -> None:
    medians = [s[figure]["median"] for s in systems]
    low = [m - s[figure]["min"] for m, s in zip(medians, systems, strict=True)]
    high = [s[figure]["max"] - m for m, s in zip(medians, systems, strict=True)]
    colours = [OURS_COLOUR if s["system"] == OURS else OTHER_COLOUR for s in systems]
    axis.barh([label(s["system"]) for s in systems], medians, xerr=[low, high], color=colours)
    axis.set_xscale("log")
    axis.xaxis.set_minor_formatter("")  # of a narrow range there would be one beside the other
    axis.set_xlim(min(medians) / 3, max(medians) * 4)
    for i, s in enumerate(systems):
        axis.text(s[figure]["max"] * 1.1, i, f"{s[figure]['median']:,.0f}", va="center", fontsize=8)


def label(system: str) -> str:
    """As people read it: rq has two, and the others need no second word."""
    if system == OURS:
        return "amn-queue"
    return system.replace("_", " ") if system.startswith("rq_") else system.partition("_")[0]
