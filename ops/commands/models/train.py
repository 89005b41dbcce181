"""`amn train`, `amn reproduce` and `amn leave-out`: from vectors to checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from amn.config import MODEL_NAMES
from ops import console
from ops.commands.models import options

_PRESETS = ("card", "robust")
#: Options that replace one value of the preset.
_CHANGES: dict[str, tuple[Any, bool]] = {
    "batch-size": (int, False),
    "learning-rate": (float, False),
    "weight-decay": (float, False),
    "patience-epochs": (int, False),
    "ema-decay": (float, False),
    "seed": (int, False),
    "dropout": (float, False),
    "distrust": (float, False),
    "residual-max": (float, False),
    "unseen-domain": (str, True),
    "selection-domain": (str, True),
}


def _changes(command: Any) -> Any:
    for name, (kind, hidden) in reversed(_CHANGES.items()):
        command = click.option(f"--{name}", type=kind, hidden=hidden)(command)
    return command


@click.command(short_help="Train a model on vectors in reading order.")
@click.option("--model", required=True, type=click.Choice(list(MODEL_NAMES)))
@options.data
@options.encoder
@options.out("Run folder, such as runs/amn.")
@click.option("--preset", default="card", show_default=True, type=click.Choice(_PRESETS))
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda", "mps"]))
@click.option("--threads", type=click.IntRange(1), default=1, help="1, the default, repeats bit for bit.")
@click.option("--first-stage", type=options.path, help="Finished AMN under the stacked layout.")
@click.option("--resume", is_flag=True, help="Go on after a kill.")
@click.option("--storage", default="float32", type=click.Choice(["float32", "float16"]))
@options.epochs
@_changes
def train(model: str, preset: str, data: Path, encoder: str, **chosen: Any) -> None:
    """Train a model on vectors in reading order, judge it on every side, and write OUT/checkpoint.

    The remaining options replace one value of the preset each.
    """
    from amn.data.readers import read_vectors
    from amn.training.recipes import recipe
    from amn.training.run import RunSettings, run_training

    names = {name.replace("-", "_") for name in ("epochs", *_CHANGES)}
    changes = {name: value for name, value in chosen.items() if name in names and value is not None}
    settings = RunSettings(**{name: value for name, value in chosen.items() if name not in names})
    changed = recipe(model, preset).changed(changes)
    with options.shown_run() as (say, tick):
        run_training(changed, read_vectors(data, encoder), settings, say=say, tick=tick)


@click.command(short_help="Train every model of docs/models.md and print the table.")
@options.data
@options.encoder
@options.out("Folder for the runs and the report.")
@click.option("--quick", is_flag=True, help="The small networks, one epoch, a tenth of the windows.")
def reproduce(data: Path, encoder: str, out: Path, quick: bool) -> None:
    """Train what is missing of the table in docs/models.md, then judge all of it together.

    It takes hours on one core. With --quick the figures are lower, the order of the models is not.
    """
    from amn.data.readers import read_vectors
    from amn.training.studies import reproduce as train_all
    from ops.commands.models.evaluate import show_evaluation

    vectors = read_vectors(data, encoder)
    with options.shown_run() as (say, tick):
        folders = train_all(vectors, out, quick=quick, say=say, tick=tick)
    show_evaluation(folders, data, out / "report", every=10 if quick else 1)


@click.command(short_help="Train without each domain in turn and judge on it.")
@options.data
@options.encoder
@options.out("Folder for the runs and leave_out.json.")
@click.option("--model", default="amn", show_default=True, type=click.Choice(list(MODEL_NAMES)))
@click.option("--preset", default="robust", show_default=True, type=click.Choice(_PRESETS))
@click.option("--epochs", type=click.IntRange(1), default=3, show_default=True, help="For each domain.")
def leave_out(data: Path, encoder: str, out: Path, model: str, preset: str, epochs: int) -> None:
    """Train without each domain in turn, and judge each model on the domain that it never saw."""
    from amn.data.readers import read_vectors
    from amn.files import write_whole
    from amn.output import strict_json
    from amn.training.recipes import recipe
    from amn.training.studies import leave_out as study

    vectors, chosen = read_vectors(data, encoder), recipe(model, preset).changed({"epochs": epochs})
    with options.shown_run() as (say, tick):
        result = study(chosen, vectors, out, say=say, tick=tick)
    write_whole(out / "leave_out.json", strict_json(result, indent=2) + "\n")
    for domain, found in result.items():
        gain = found["gain_over_context_mean"]
        console.say(
            f"{domain:>12}  {found['cosine']['mean']:.4f}  gain {gain['mean']:+.4f} "
            f"[{gain['low']:+.4f}, {gain['high']:+.4f}]  n {gain['n']}"
        )
