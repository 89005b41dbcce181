"""python -m bench tune: which concurrency suits each of the other systems best.

Each choice of each system drains a queue with one worker process, in turns. The one with the best run,
which other load disturbed least, is written to tune.json, with all figures. `compare` takes it from there
when it has the same folder, else from bench/peers/tuned.json, where `publish` keeps it. The others'
slower form has a sweep of its own (`--written`). One worker's choice is taken for two workers too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from bench.compare import label
from bench.machine import environment, spread
from bench.report import facts, markdown, shown, write
from bench.rows import Rows
from bench.systems import OURS, REQUESTS, Run, System, contexts_file, run_one
from ops.console import err


@click.command("tune")
@click.option("--repeats", default=3, show_default=True)
@click.option("--requests", default=1_000, show_default=True)
@click.option("--minutes", default=60.0, show_default=True, help="No run begins after this.")
@click.option("--only", default="", help="Systems, comma-separated; all with a choice by default.")
@click.option("--written", is_flag=True, help="For `compare --written`.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("var/bench"), show_default=True)
def command(repeats: int, requests: int, minutes: float, only: str, written: bool, out: Path) -> None:
    """Sweep the concurrency of the others; writes tune.jsonl, .json and .md, or tune-written.*."""
    report_name = "tune-written" if written else "tune"
    names = only.split(",") if only else [name for name in REQUESTS if name != OURS]
    systems = [system for system in (System.load(name, out) for name in names) if system.choices]
    rows = Rows(out / f"{report_name}.jsonl", environment())
    plan = [(r, s, choice) for r in range(repeats) for s in systems for choice in s.choices]
    plan = [p for p in plan if not rows.has(repeat=p[0], system=p[1].name, choice=p[2])]
    over_s = time.monotonic() + minutes * 60
    with contexts_file() as contexts, Progress(console=err()) as progress:
        task = progress.add_task("", total=len(plan))
        for repeat, system, choice in plan:
            if time.monotonic() > over_s:
                click.echo(f"{minutes:g} minutes are over: the others keep their choices", err=True)
                break
            progress.update(task, description=f"{system.name}, {choice}, run {repeat + 1}")
            run = Run(
                system=system,
                contexts=contexts,
                words=("--requests", str(requests)),
                surroundings={"BENCH_CHOICE": choice, **({"BENCH_WRITTEN": "1"} if written else {})},
            )
            try:
                row = run_one(run)
            except RuntimeError as error:
                click.echo(f"{system.name}, {choice}: {error}", err=True)
                row = {"drain_per_s": 0.0}
            rows.add({"system": system.name, "choice": choice, "repeat": repeat, **row})
            progress.advance(task)
    found = summary(rows, {system.name: system.choices for system in systems})
    surroundings = rows.surroundings
    write(out, report_name, {"environment": surroundings, "systems": found}, table(found, surroundings))


def summary(rows: Iterable[Mapping[str, Any]], choices: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """By system of which every choice was tried: the best one, and the figures of all."""
    runs: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        runs.setdefault(row["system"], {}).setdefault(row["choice"], []).append(row["drain_per_s"])
    found = {}
    for name, tried in sorted(runs.items()):
        if set(tried) != set(choices.get(name, ())):
            continue
        figures = {choice: {**spread(rates), "n": len(rates)} for choice, rates in tried.items()}
        choice = max(figures, key=lambda c: figures[c]["max"])
        found[name] = {"choice": choice, "drain_per_s": figures}
    return found


def table(found: Mapping[str, Any], surroundings: Mapping[str, object]) -> str:
    """Markdown."""
    rows = []
    for name, system in found.items():
        figures = ", ".join(f"{choice}: {shown(f)}" for choice, f in system["drain_per_s"].items())
        rows.append((label(name), system["choice"], figures))
    lines = markdown(("system", "chosen", "answered/s with one worker, median (min, max)"), rows)
    return "\n".join([*lines, "", facts({"environment": surroundings})]) + "\n"
