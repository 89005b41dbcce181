"""python -m bench all: every measurement into one folder, within a limit of minutes.

Each step is a command of this group in a process of its own, the important ones first. A step that would
not fit in the time that is left is left out, and said.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import click

from bench.goals import goals_table
from bench.report import out_option
from bench.systems import REQUESTS, System

_MINUTES, _LONG_MINUTES = 45.0, 90.0
#: The three others that drain fastest.
_OTHERS = "huey_thread,saq_loop,dramatiq_threads"
#: Command with its options, and the minutes that it takes on two quiet cores of 2021.
Step = tuple[str, float]
QUICK: tuple[Step, ...] = (
    ("compare --repeats 3 --scale 0.5 --minutes 4", 4.2),
    ("drain --requests 10000 --repeats 3", 1.0),
    ("latency --seconds 4 --repeats 2", 1.3),
    ("latency --alone --rates 100,500,1000 --name latency-alone --seconds 4 --repeats 2", 0.8),
    ("peer-latency --only bare_loop,huey_thread --rates 100,500,1000 --seconds 4 --repeats 1", 0.8),
    ("lone", 1.5),
    ("shares --requests 8000", 0.4),
    ("micro", 0.5),
    ("batch --repeats 2", 0.8),
    ("cost --served-max 100000 --waiting-max 10000 --repeats 1", 1.5),
)


def steps(bank: Path | None = None, data: Path | None = None, long: bool = False) -> list[Step]:
    """All of `make bench`."""
    large = f"latency --bank {bank} --name latency-bank --seconds 6 --repeats 3"
    far = "cost --served-max 10000000 --waiting-max 1000000"
    return [
        ("compare --repeats 5 --minutes 9", 9.2),
        ("drain --requests 15000 --repeats 5", 1.8),
        ("latency --seconds 6 --repeats 3", 2.7),
        *([(large, 2.7)] if bank else []),
        ("latency --alone --rates 100,500,1000 --name latency-alone --seconds 6 --repeats 3", 1.5),
        ("lone", 1.5),
        ("shares", 0.5),
        ("micro", 0.5),
        ("batch", 1.7),
        ("capacity", 0.7),
        ("peer-latency --seconds 5 --repeats 3", 5.6),
        (far, 50.0) if long else ("cost", 5.0),
        (f"compare --written --only amn_queue,{_OTHERS} --repeats 3 --minutes 3", 2.5),
        ("compare --workers 2 --name compare-two --repeats 3 --minutes 4", 4.1),
        *([(f"gate --bank {bank} --data {data} --queries 2000", 0.5)] if bank and data else []),
    ]


@click.command("all")
@click.option("--quick", is_flag=True, help="Fewer repeats and systems, in 15 minutes.")
@click.option("--long", is_flag=True, help="Ten million served, a million waiting: needs 17 GB of memory.")
@click.option("--minutes", type=float, help="No step begins that would end later; 45, or 90 with --long.")
@click.option("--bank", type=click.Path(path_type=Path, exists=True), help="A large reference bank.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="Vectors, to judge its index.")
@out_option
def command(quick: bool, minutes: float | None, out: Path, **options: Path | None) -> None:
    """Measure everything into one folder, and write report.md there."""
    out.mkdir(parents=True, exist_ok=True)
    if not quick:  # what pip has to do once is not in the minutes
        System.load_all(",".join(REQUESTS))
    plan = list(QUICK) if quick else steps(options["bank"], options["data"], bool(options["long"]))
    over_s = time.monotonic() + (minutes or (_LONG_MINUTES if options["long"] else _MINUTES)) * 60
    failed = []
    for number, (words, needs) in enumerate(plan, 1):
        head, left = f"[{number}/{len(plan)}] {words}", (over_s - time.monotonic()) / 60
        if needs > left:
            click.echo(f"{head}: left out, {left:.1f} minutes are left and it takes {needs:g}", err=True)
            continue
        click.echo(f"{head}: about {needs:g} minutes, {left:.1f} are left", err=True)
        started_s = time.monotonic()
        # Whatever a step started ends with it: it stops its servers and workers by itself.
        code = subprocess.run([sys.executable, "-m", "bench", *words.split(), "--out", str(out)]).returncode
        click.echo(f"{words.split()[0]}: {time.monotonic() - started_s:.0f} s, code {code}", err=True)
        failed += [words] if code else []
    reports = {path.stem: json.loads(path.read_text("utf-8")) for path in out.glob("*.json")}
    texts = [f"## {path.stem}\n\n{path.read_text('utf-8')}" for path in sorted(out.glob("*.md"))]
    (out / "report.md").write_text("\n\n".join([goals_table(reports), *texts]), "utf-8")
    click.echo(f"written: {out}/report.md; to the documents: python -m bench publish {out}", err=True)
    if failed:
        raise click.ClickException(f"these steps failed: {', '.join(failed)}")
