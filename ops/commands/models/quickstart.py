"""`amn quickstart`: the commands of docs/text-to-answers.md one after the other."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import click

from ops import console
from ops.commands.models import options


@click.command(short_help="From a folder of text to promoted models of your own.")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--encoder", required=True, type=options.path, help="A folder of sentence-transformers.")
@click.option(
    "--unseen-domain", required=True, metavar="NAME", help="Kept out of training, and judged as OOD."
)
@click.option("--out", default=".", type=options.path, help="Folder for vectors, runs and models.")
@click.option("--show", is_flag=True, help="Print the commands, and run none.")
def quickstart(sources: tuple[str, ...], encoder: Path, unseen_domain: str, out: Path, show: bool) -> None:
    """Run the commands of docs/text-to-answers.md, from encoding to promotion, and print each before it runs.

    What is there already is not made again, so that the same command goes on.

    \b
    Example:
      amn quickstart texts --encoder encoder --unseen-domain forum
    """
    models = str(out / "models")
    os.environ["AMN_ARTIFACTS"] = models
    root = click.get_current_context().find_root().command
    for words, result in _steps(sources, str(encoder), unseen_domain, out):
        console.say(shlex.join(["amn", *words]))
        if result.exists():
            console.say(f"  {result} is there already", err=True)
        elif not show:
            root.main(words, prog_name="amn", standalone_mode=False, auto_envvar_prefix="AMN")
    console.say(f"export AMN_ARTIFACTS={shlex.quote(models)}")
    for words in (["up"], ["predict", str(out / "vectors"), "--out", str(out / "predictions")]):
        console.say(shlex.join(["amn", *words]))


def _steps(
    sources: tuple[str, ...], encoder: str, unseen_domain: str, out: Path
) -> Iterator[tuple[list[str], Path]]:
    """Yield the words of each command, and what is there when it is done."""
    vectors, amn, stacked, report = (
        str(out / name) for name in ("vectors", "runs/amn", "runs/stacked", "runs/report")
    )
    bank, calibration = str(out / "models/banks/first"), str(out / "models/calibrations/first")
    first, second = f"{amn}/checkpoint", f"{stacked}/checkpoint"
    trained = ["--data", vectors, "--unseen-domain", unseen_domain, "--out"]
    after = ["--storage", "float16", "--first-stage", first]
    # A run that encodes knows itself what is done; nothing tells from outside that it is complete.
    yield ["data", "encode", *sources, "--encoder", encoder, "--out", vectors], Path(vectors, "complete")
    yield ["train", "--model", "amn", "--preset", "robust", *trained, amn], Path(first, "manifest.json")
    yield (
        ["train", "--model", "stacked", "--preset", "robust", *after, *trained, stacked],
        Path(second, "manifest.json"),
    )
    yield ["evaluate", first, second, "--data", vectors, "--out", report], Path(report, "evaluation.html")
    yield ["bank", "build", vectors, "--model", first, "--out", bank], Path(bank)
    built = ["--bank", bank, "--data", vectors, "--out", calibration]
    yield ["calibrate", first, second, *built], Path(calibration, "report.md")
    linked = ["--calibration", calibration, "--bank", bank]
    yield ["promote", first, *linked], out / "models/production_model"
    yield ["promote", second, "--link", "fallback_accuracy"], out / "models/fallback_accuracy"
