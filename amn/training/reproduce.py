"""`python -m amn reproduce`: train every model and print the table of docs/models.md.

Hours on one core. `--quick` trains the three small networks for one epoch each: the numbers
are lower, the order of the models is not.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from amn.model import checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One training command of the table."""

    name: str
    model: str
    preset: str
    options: tuple[str, ...] = ()


STEPS = (
    Step(name="amn", model="amn", preset="robust"),
    Step(
        name="stacked",
        model="stacked",
        preset="robust",
        options=("--storage", "float16", "--first-stage", "{out}/amn/checkpoint"),
    ),
    Step(name="gru-card", model="gru-card", preset="robust"),
    Step(name="amn-card", model="amn-card", preset="card"),
    Step(name="amn-published", model="amn-published", preset="card", options=("--patience-epochs", "2")),
    Step(name="transformer", model="transformer", preset="robust"),
    Step(name="gru", model="gru", preset="robust", options=("--storage", "float16")),
)
QUICK = {"amn", "stacked", "amn-card", "amn-published"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the reproduce command."""
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path, help="folder for the runs")
    parser.add_argument("--encoder", default="", help="where the file does not name it")
    parser.add_argument("--quick", action="store_true", help="small networks, one epoch")


def options_of(step: Step, out: Path) -> list[str]:
    """The step's own options; `{out}` in one is the folder of the runs."""
    return [option.replace("{out}", str(out)) for option in step.options]


def run_reproduce(options: argparse.Namespace) -> int:
    """Train what is missing, then evaluate all of it together."""
    from amn.__main__ import main

    steps = [step for step in STEPS if not options.quick or step.name in QUICK]
    folders = [str(options.out / step.name / "checkpoint") for step in steps]
    for step, folder in zip(steps, folders, strict=True):
        if (Path(folder) / checkpoint.MANIFEST_FILE).is_file():
            continue
        command = [
            "train",
            "--model",
            step.model,
            "--preset",
            step.preset,
            *options_of(step, options.out),
            "--resume",
        ]
        command += [
            "--encoder",
            options.encoder,
            "--data",
            str(options.data),
            "--out",
            str(options.out / step.name),
        ]
        if code := main(command + (["--epochs", "1"] if options.quick else [])):
            return code
    judge = ["evaluate", *folders, "--data", str(options.data), "--out", str(options.out / "report")]
    return main(judge + (["--quick"] if options.quick else []))
