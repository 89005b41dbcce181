"""python -m bench compare: this queue beside others, the same job, server, model and machine.

Every run has an empty server and fresh workers. One worker: it has a core of its own, server and
producer share the other one. Two workers: nothing is pinned. The order of the systems changes from
repeat to repeat, and the headline is the ratio of medians.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.progress import Progress

from bench.environments import interpreter, package
from bench.machine import environment, free_port, pinned, spread
from ops.console import err
from ops.sample import Sample
from ops.server import Server, ServerSettings

#: Ours first; the requests of a run, so that each takes some seconds.
SYSTEMS = {
    "amn_queue": 20_000,
    "huey_thread": 3_000,
    "dramatiq_threads": 3_000,
    "taskiq_stream": 3_000,
    "streaq_loop": 3_000,
    "saq_loop": 3_000,
    "arq_loop": 3_000,
    "celery_solo": 3_000,
    "rq_simple": 1_500,
    "rq_forked": 300,
}
OURS = "amn_queue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is run.

    Attributes:
        systems: Names and requests.    workers: Counts to try.
        repeats: Of each.    out: Folder of the report.
    """

    systems: Mapping[str, int]
    workers: Sequence[int]
    repeats: int
    out: Path


def compare(plan: Plan) -> dict[str, object]:
    """Runs everything; returns what the report is made of."""
    peers = Path(__file__).parent / "peers"
    constants = {name: _constants(peers / f"{name}.py") for name in plan.systems}
    pythons = {name: interpreter(_requirements(constants[name])) for name in plan.systems}
    rows: dict[tuple[str, int], list[dict[str, float]]] = {}
    failures: dict[str, str] = {}
    runs = [
        (r, w, name) for r in range(plan.repeats) for w in plan.workers for name in _turned(plan.systems, r)
    ]
    with tempfile.TemporaryDirectory() as folder, Progress(console=err()) as progress:
        contexts = _contexts(Path(folder))
        task = progress.add_task("", total=len(runs))
        for repeat, workers, name in runs:
            progress.update(task, description=f"{name}, {workers} worker(s), run {repeat + 1}")
            try:
                row = run_one(pythons[name], name, contexts, plan.systems[name], workers)
                rows.setdefault((name, workers), []).append(row)
            except RuntimeError as error:
                failures[f"{name}, {workers}"] = str(error)
            progress.advance(task)
    results = [_summary(name, workers, runs) for (name, workers), runs in rows.items()]
    notes = {name: str(constants[name].get("NOTE", "")) for name in plan.systems}
    return {
        "environment": environment(),
        "systems": results,
        "notes": notes,
        "failures": failures,
        "versions": {name: _version(pythons[name], _requirements(constants[name])) for name in plan.systems},
    }


def run_one(python: Path, name: str, contexts: Path, requests: int, workers: int) -> dict[str, float]:
    """One run with a server of its own, on loopback TCP, which all systems speak.

    Raises:
        RuntimeError: It did not come to its end; the text is the last of its output.
    """
    port = free_port()
    # One worker: it goes to core 0 by itself (BENCH_CORE), all else stays on core 1.
    apart = pinned({1}) if workers == 1 else nullcontext()
    with (
        tempfile.TemporaryDirectory() as folder,
        apart,
        Server(ServerSettings(data=Path(folder), port=port)),
    ):
        log = Path(folder) / "workers.log"
        command = [str(python), "-m", "bench.peers.runner", name, "--contexts", str(contexts)]
        command += ["--requests", str(requests), "--workers", str(workers), "--log", str(log)]
        surroundings = {"BENCH_URL": f"redis://127.0.0.1:{port}/0", "BENCH_CORE": "0" if workers == 1 else ""}
        done = subprocess.run(command, env={**os.environ, **surroundings}, capture_output=True, text=True)
        if done.returncode:
            tail = (done.stderr.strip().splitlines() or ["no message"])[-1]
            more = log.read_text("utf-8", "replace").strip().splitlines()[-1:] if log.is_file() else []
            raise RuntimeError(" | ".join([tail, *more]))
        row: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
        return row


def _turned(systems: Mapping[str, int], by: int) -> list[str]:
    names = list(systems)
    return names[by % len(names) :] + names[: by % len(names)]


def _contexts(folder: Path) -> Path:
    sample = Sample.load(Path("artifacts/sample/sequences.npz"))
    path = folder / "contexts.f4"
    np.stack([sample.context(i) for i in range(512)]).astype("<f4").tofile(path)
    return path


def _constants(path: Path) -> dict[str, object]:
    """The literal constants of a peer's module, which cannot be imported here."""
    tree = ast.parse(path.read_text("utf-8"))
    found: dict[str, object] = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant | ast.Tuple):
            try:
                found[target.id] = ast.literal_eval(value)
            except ValueError:
                continue
    return found


def _requirements(constants: Mapping[str, object]) -> tuple[str, ...]:
    value = constants.get("REQUIREMENTS", ("rq", "msgpack", "redis"))
    assert isinstance(value, tuple)
    return value


def _version(python: Path, requirements: tuple[str, ...]) -> str:
    if not requirements:
        return "this checkout"
    name = package(requirements)
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return f"{name} {done.stdout.strip()}"


def _summary(name: str, workers: int, runs: Sequence[Mapping[str, float]]) -> dict[str, object]:
    return {
        "system": name,
        "workers": workers,
        "repeats": len(runs),
        "requests": runs[0]["requests"],
        "enqueue_per_s": spread([run["enqueue_per_s"] for run in runs]),
        "drain_per_s": spread([run["drain_per_s"] for run in runs]),
    }


def ratios(report: Mapping[str, object]) -> dict[str, float]:
    """Ours over the best other system, by medians, for one worker.

    Raises:
        ValueError: Ours or every other system is missing.
    """
    systems = [s for s in report["systems"] if s["workers"] == 1]  # type: ignore[attr-defined]
    ours = [s for s in systems if s["system"] == OURS]
    others = [s for s in systems if s["system"] != OURS]
    if not ours or not others:
        raise ValueError("ratios need our system and another one")
    return {
        name: ours[0][name]["median"] / max(s[name]["median"] for s in others)
        for name in ("drain_per_s", "enqueue_per_s")
    }


@click.command("compare")
@click.option("--repeats", default=5, show_default=True)
@click.option("--workers", default="1,2", show_default=True, help="Worker processes, comma-separated.")
@click.option("--only", default="", help="Systems, comma-separated; all by default.")
@click.option("--scale", default=1.0, show_default=True, help="Multiplies the requests of a run.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("var/bench"), show_default=True)
def command(repeats: int, workers: str, only: str, scale: float, out: Path) -> None:
    """Compare with other queues; writes compare.json, compare.md and plots."""
    from bench.report import write_comparison

    names = only.split(",") if only else list(SYSTEMS)
    unknown = set(names) - set(SYSTEMS)
    if unknown:
        raise click.BadParameter(f"unknown systems {sorted(unknown)}; known: {', '.join(SYSTEMS)}")
    plan = Plan(
        systems={name: max(int(SYSTEMS[name] * scale), 100) for name in names},
        workers=[int(n) for n in workers.split(",")],
        repeats=repeats,
        out=out,
    )
    report = compare(plan)
    write_comparison(report, out)
