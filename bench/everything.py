"""python -m bench all: every measurement in one folder, within a limit of minutes.

Each step is a command of this group in a process of its own, the important ones first. What is done is
noted in steps.json with its time and the machine's load: called again with the same folder, the command
goes on with what is missing. A step that would not fit in the time that is left is left out, and noted.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click

from bench.goals import goals_table
from bench.machine import environment, stolen
from bench.report import facts, rows_table
from bench.systems import REQUESTS, System

#: A step that takes this much longer than it should is ended, but not within three minutes.
_PATIENCE, _PATIENCE_S = 2.5, 180.0
_MINUTES, _LONG_MINUTES = 50.0, 95.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command.

    Attributes:
        name: In steps.json.    words: The command and its options.
        minutes: What it takes on two quiet cores of 2021.
        prints: "json" or "md" for a command that prints its report instead of writing it.
    """

    name: str
    words: tuple[str, ...]
    minutes: float
    prints: str = ""


def steps(bank: Path | None, data: Path | None, long: bool = False) -> list[Step]:
    """All of `make bench`."""
    far = ("--served-max", "10000000", "--waiting-max", "1000000") if long else ()
    found = [
        Step(
            name="tune", words=("tune", "--repeats", "2", "--requests", "1000", "--minutes", "7"), minutes=7.2
        ),
        Step(name="compare", words=("compare", "--repeats", "5", "--minutes", "9"), minutes=9.2),
        Step(name="drain", words=("drain", "--requests", "15000", "--repeats", "5"), minutes=1.8),
        Step(name="latency", words=("latency", "--seconds", "6", "--repeats", "3"), minutes=2.7),
    ]
    if bank:
        words = ("latency", "--bank", str(bank), "--name", "latency-bank", "--seconds", "6", "--repeats", "3")
        found.append(Step(name="latency-bank", words=words, minutes=2.7))
    found += [
        Step(name="floor", words=("floor",), minutes=2.0),
        Step(name="limits", words=("limits",), minutes=0.3),
        Step(name="shares", words=("shares",), minutes=0.5),
        Step(name="micro", words=("micro",), minutes=0.5),
        Step(name="batch", words=("batch",), minutes=1.7, prints="json"),
        Step(name="peer-latency", words=("peer-latency", "--seconds", "5", "--repeats", "3"), minutes=4.6),
        Step(name="partitions", words=("partitions",), minutes=1.5),
        Step(name="cost", words=("cost", *far), minutes=50.0 if long else 5.0),
        Step(
            name="tune-written",
            words=("tune", "--written", "--only", _OTHERS, "--repeats", "1", "--minutes", "3"),
            minutes=2.5,
        ),
        Step(
            name="compare-written",
            words=(
                "compare",
                "--written",
                "--only",
                f"amn_queue,{_OTHERS}",
                "--repeats",
                "3",
                "--minutes",
                "3",
            ),
            minutes=2.5,
        ),
        Step(
            name="compare, two workers",
            words=("compare", "--workers", "2", "--repeats", "3", "--minutes", "4"),
            minutes=4.1,
        ),
    ]
    if bank and data:
        words = ("gate", "--bank", str(bank), "--data", str(data), "--queries", "2000")
        found.append(Step(name="gate", words=words, minutes=0.5, prints="md"))
    return found


#: Those that drain fastest.
_OTHERS = "huey_thread,saq_loop,dramatiq_threads"
QUICK = (
    Step(
        name="compare",
        words=(
            "compare",
            "--repeats",
            "1",
            "--scale",
            "0.3",
            "--only",
            "amn_queue,dramatiq_threads,huey_thread",
        ),
        minutes=0.5,
    ),
    Step(
        name="drain", words=("drain", "--requests", "6000", "--repeats", "1", "--workers", "1,2"), minutes=0.3
    ),
    Step(name="latency", words=("latency", "--seconds", "2", "--repeats", "1"), minutes=0.5),
    Step(name="shares", words=("shares", "--requests", "8000"), minutes=0.4),
    Step(name="limits", words=("limits", "--repeats", "2"), minutes=0.3),
    Step(
        name="cost",
        words=("cost", "--served-max", "10000", "--waiting-max", "10000", "--repeats", "1"),
        minutes=0.4,
    ),
)


@click.command("all")
@click.option("--quick", is_flag=True, help="The main figures in three minutes.")
@click.option("--long", is_flag=True, help="Ten million served, a million waiting: needs 17 GB of memory.")
@click.option("--minutes", type=float, help="No step begins that would end later; 50, or 95 with --long.")
@click.option("--bank", type=click.Path(path_type=Path, exists=True), help="A large reference bank.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="Vectors, to judge its index.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("var/bench"), show_default=True)
def command(
    quick: bool, long: bool, minutes: float | None, bank: Path | None, data: Path | None, out: Path
) -> None:
    """Measure everything into one folder; called again, go on with what is missing."""
    out.mkdir(parents=True, exist_ok=True)
    if not quick:
        for name in REQUESTS:  # what pip has to do once is not in the minutes
            System.load(name, out)
    plan = list(QUICK) if quick else steps(bank, data, long)
    over_s = time.monotonic() + (minutes or (_LONG_MINUTES if long else _MINUTES)) * 60
    commit = str(environment()["commit"])
    state = Steps(out / "steps.json", commit)
    for number, step in enumerate(plan, 1):
        head = f"[{number}/{len(plan)}] {step.name}"
        if state.done(step):
            click.echo(f"{head}: done before", err=True)
            continue
        if (now := environment()["commit"]) != commit:
            raise click.ClickException(f"this checkout moved from commit {commit} to {now} meanwhile")
        left = (over_s - time.monotonic()) / 60
        if step.minutes > left:
            click.echo(
                f"{head}: left out, {left:.1f} minutes are left and it takes {step.minutes:g}", err=True
            )
            state.note(step, {"code": None, "left_out": True})
            continue
        click.echo(f"{head}: about {step.minutes:g} minutes, {left:.1f} are left", err=True)
        state.note(step, _run(step, out, left * 60))
    reports = {path.stem: json.loads(path.read_text("utf-8")) for path in out.glob("*.json")}
    text = f"{goals_table(reports)}\n\n{joined(out, [step.name for step in plan])}"
    (out / "report.md").write_text(text, "utf-8")
    click.echo(f"written: {out}/report.md; to the documents: python -m bench publish {out}", err=True)
    if state.failed(plan):
        raise SystemExit(1)


class Steps:
    """What was done in a folder, all of it with one commit.

    Raises:
        ClickException: The folder holds steps of another commit.
    """

    def __init__(self, path: Path, commit: str) -> None:
        self._path, self._commit = path, commit
        self._found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        for name, row in self._found.items():
            if row.get("commit") != commit:
                raise click.ClickException(
                    f"{path}: {name} was measured with commit {row.get('commit', 'unknown')}, and this is "
                    f"{commit}: they are not one run; give another folder with --out, or remove this one"
                )

    def done(self, step: Step) -> bool:
        """Whether it ended well, with the same options."""
        row = self._found.get(step.name, {})
        return row.get("code") == 0 and row.get("words") == list(step.words)

    def failed(self, plan: Sequence[Step]) -> bool:
        """Whether one of them ended badly."""
        return any(self._found.get(step.name, {}).get("code") not in (0, None) for step in plan)

    def note(self, step: Step, row: dict[str, Any]) -> None:
        """Writes it down at once."""
        self._found[step.name] = {"words": list(step.words), "commit": self._commit, **row}
        self._path.write_text(json.dumps(self._found, indent=1) + "\n", "utf-8")


def _run(step: Step, out: Path, left_s: float) -> dict[str, Any]:
    """Runs a step, no longer than is left; its messages go to the terminal and its files to `out`."""
    before, load, started_s = stolen(), environment()["load_before"], time.monotonic()
    command = [sys.executable, "-m", "bench", *step.words]
    command += [] if step.prints else ["--out", str(out)]
    patience_s = min(max(step.minutes * 60 * _PATIENCE, _PATIENCE_S), left_s)
    with tempfile.TemporaryFile() as printed:
        code = _wait(command, printed if step.prints else None, patience_s)
        printed.seek(0)
        text = printed.read().decode()
    if step.prints and code == 0:
        _keep(step, text, out)
    seconds = time.monotonic() - started_s
    click.echo(f"{step.name}: {seconds:.0f} s, code {code}", err=True)
    return {"code": code, "seconds": round(seconds, 1), "load_before": load, "stolen": stolen(before)}


def _wait(command: Sequence[str], to: IO[bytes] | None, patience_s: float) -> int:
    """Its exit code; -1 when it is not done in time. Whatever it started ends with it."""
    process = subprocess.Popen(command, stdout=to, process_group=0)
    try:
        return process.wait(patience_s)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        click.echo(f"ended: it is not done after {patience_s:.0f} s, or you asked for it", err=True)
        os.killpg(process.pid, signal.SIGINT)  # it stops its servers and workers by itself
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        if isinstance(error, KeyboardInterrupt):
            raise
        return -1


def _keep(step: Step, printed: str, out: Path) -> None:
    """Writes what a step printed; rows of JSON as a table too."""
    (out / f"{step.name}.{step.prints}").write_text(printed, "utf-8")
    if step.prints == "json":
        report = json.loads(printed)
        lines = [*rows_table(report["runs"]), "", f"{report['repeats']} repeats. {facts(report)}"]
        (out / f"{step.name}.md").write_text("\n".join(lines) + "\n", "utf-8")


def joined(out: Path, names: Sequence[str]) -> str:
    """The texts of all steps, one after the other."""
    parts = []
    for name in dict.fromkeys(names):
        path = out / f"{name}.md"
        if path.is_file():
            images = (out / f"{name}.svg", out / f"{name}-flame.svg")
            plots = "".join(f"\n![{p.stem}]({p.name})\n" for p in images if p.is_file())
            parts.append(f"## {name}\n\n{path.read_text('utf-8')}{plots}")
    return "\n".join(parts)
