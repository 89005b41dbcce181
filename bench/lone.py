"""python -m bench lone: what a lone request costs, beside another commit's in the same run.

Each commit has a server, one AMN worker and a client of its own; they take turns, so that what else the
machine does meets all of them. A closed loop sends one request at a time. The open loops send at Poisson
times, and a request's clock starts when it is due. A drain answers a full queue. Nothing is pinned; no
fallback runs.
"""

from __future__ import annotations

import io
import json
import math
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import click
import numpy as np

from bench.machine import environment
from bench.report import out_option, write
from workers.pool.child import our_environment

SIDE = Path(__file__).with_name("lone_side.py").resolve()
HERE = "this checkout"
CPU = ("worker_us", "server_us", "client_us")


@click.command("lone")
@click.option("--against", help="A commit to compare this checkout with; it is unpacked and built.")
@click.option("--requests", default=300, show_default=True, help="Of one turn.")
@click.option("--turns", default=10, show_default=True, help="Of each way and commit.")
@click.option("--rates", default="100,500,1000", show_default=True, help="Of the open loops, requests/s.")
@out_option
def command(against: str | None, requests: int, turns: int, rates: str, out: Path) -> None:
    """CPU and latency of a lone request; writes lone.json and lone.md."""
    surroundings = environment()
    with ExitStack() as stack:
        sides = {HERE: stack.enter_context(Side(Path.cwd()))}
        if against is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            unpack(against, folder)
            sides[against] = stack.enter_context(Side(folder))
        found = {"one at a time": in_turns(sides, ("closed", requests), turns)}
        for rate in map(float, rates.split(",")):
            found[f"Poisson, {rate:g}/s"] = in_turns(sides, ("open", 2 * requests, rate), turns)
            found[f"PING, {rate:g}/s"] = in_turns(sides, ("ping", 2 * requests, rate), max(turns // 3, 1))
        found["full queue"] = in_turns(sides, ("drain", 20 * requests), max(turns // 3, 1))
    report = {"environment": surroundings, "requests": requests, "turns": turns, "against": against}
    write(out, "lone", report | {"found": found, "ratios": ratios(found)}, rows(found), rows(ratios(found)))


class Side:
    """The processes of one checkout; a context manager in which they are warm."""

    def __init__(self, folder: Path) -> None:
        environment = {**our_environment(), "PYTHONPATH": str(folder)}
        words = [sys.executable, "-P", str(SIDE)]
        self._process = subprocess.Popen(
            words, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, *words: Any) -> dict[str, Any]:
        """One turn: its way, and its numbers."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException("a side ended; it said why above")
        found: dict[str, Any] = json.loads(line)
        return found


def unpack(commit: str, folder: Path) -> None:
    """Puts a commit's files into a folder, and builds its loops."""
    words = ["git", "archive", "--format=tar", commit]
    done = subprocess.run(words, capture_output=True)
    if done.returncode:
        raise click.ClickException(f"no commit {commit!r}: {done.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as files:
        files.extractall(folder, filter="tar")
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    if subprocess.run(build, cwd=folder, capture_output=True).returncode:
        raise click.ClickException(f"the loops of {commit} were not built; is there a C compiler?")


def in_turns(sides: Mapping[str, Side], words: Sequence[Any], turns: int) -> dict[str, dict[str, float]]:
    """Returns the medians of each side's figures."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(turns):
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            runs[name].append(figures(sides[name].run(*words, *([turn] if len(words) > 2 else []))))
        click.echo(f"{words[0]}: turn {turn + 1} of {turns}", err=True)
    return {
        name: {figure: statistics.median(run[figure] for run in some) for figure in some[0]}
        for name, some in runs.items()
    }


def figures(run: dict[str, Any]) -> dict[str, float]:
    """Returns a turn's figures, with the sum of the CPU and the percentiles in place of each latency."""
    if (waited_ms := run.pop("ms", None)) is None:
        return run
    p50, p95 = np.percentile(waited_ms, (50, 95)).tolist()
    return {**run, "cpu_us": sum(run[name] for name in CPU), "ms_p50": p50, "ms_p95": p95}


def ratios(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Returns this checkout's figures over those of the other commit; nothing without one."""
    return {
        way: {
            f"{HERE} over {name}": {
                figure: sides[HERE][figure] / (value or math.nan) for figure, value in of.items()
            }
        }
        for way, sides in found.items()
        for name, of in sides.items()
        if name != HERE
    }


def rows(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Return one row a way and side."""
    return [{"way": way, "of": name, **of} for way, sides in found.items() for name, of in sides.items()]
