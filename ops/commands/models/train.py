"""`amn train`, `amn reproduce` and `amn leave-out`: from vectors to checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from amn.config import MODEL_NAMES
from amn.errors import ConfigError
from ops import console
from ops.commands.models import options

_PRESETS = click.Choice(("card", "robust"))
_MODELS = click.Choice(list(MODEL_NAMES))
_EPOCHS = click.IntRange(1)
#: Options that replace one value of the preset, and their types.
_CHANGES: dict[str, Any] = {
    "epochs": _EPOCHS,
    **dict.fromkeys(("batch-size", "patience-epochs", "seed"), int),
    **dict.fromkeys(
        ("learning-rate", "weight-decay", "ema-decay", "dropout", "distrust", "residual-max"), float
    ),
    "selection-domain": str,
}
_UNSEEN = "unseen-domain"


def _changes(command: Any) -> Any:
    for name, kind in reversed(_CHANGES.items()):
        command = click.option(f"--{name}", type=kind, hidden=kind is str)(command)
    return options.unseen(command)


@click.command(short_help="Train a model on vectors in reading order.")
@click.option("--model", required=True, type=_MODELS)
@options.data
@options.encoder
@options.out("Run folder, such as runs/amn.")
@click.option("--preset", default="card", type=_PRESETS)
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda", "mps"]))
@click.option("--threads", type=click.IntRange(1), default=1, help="1, the default, repeats bit for bit.")
@click.option("--first-stage", type=options.path, help="Finished AMN under a stacked or a retrieval model.")
@click.option("--resume", is_flag=True, help="Go on after a kill.")
@click.option("--storage", default="float32", type=click.Choice(["float32", "float16"]))
@_changes
def train(model: str, preset: str, data: Path, encoder: str, **chosen: Any) -> None:
    """Train a model on vectors in reading order, judge it on every side, and write OUT/checkpoint.

    The remaining options replace one value of the preset each.
    """
    from amn.data.readers import read_vectors
    from amn.training.recipes import recipe
    from amn.training.run import FILED, RunSettings, run_training

    changes = {name: chosen.pop(name) for name in (name.replace("-", "_") for name in (*_CHANGES, _UNSEEN))}
    changes = {name: x for name, x in changes.items() if x is not None}
    if model == "retrieval" and (idle := sorted(changes.keys() - FILED)):
        raise ConfigError(f"--{idle[0].replace('_', '-')} changes nothing in a memory, which has no epochs")
    changed = recipe(model, preset).changed(changes)
    with options.shown_run() as (say, tick):
        run_training(changed, read_vectors(data, encoder), RunSettings(**chosen), say=say, tick=tick)


@click.command(short_help="Train every model of docs/models.md and print the table.")
@options.data
@options.encoder
@options.out("Folder for the runs and the report.")
@click.option("--quick", is_flag=True, help="The small networks, one epoch, a tenth of the windows.")
def reproduce(data: Path, encoder: str, out: Path, quick: bool) -> None:
    """Train the missing models of the table in docs/models.md, then judge all of them together.

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
@click.option("--model", default="amn", type=_MODELS)
@click.option("--preset", default="robust", type=_PRESETS)
@click.option("--epochs", type=_EPOCHS, default=3, help="For each domain.")
@click.option(
    "--first-stages", type=options.path, help="OUT of an earlier run for amn, under stacked or retrieval."
)
def leave_out(
    data: Path, encoder: str, out: Path, model: str, preset: str, epochs: int, first_stages: Path | None
) -> None:
    """Train without each domain in turn, and judge each model on the domain that it never saw."""
    from amn.data.readers import read_vectors
    from amn.evaluation.report import gain_text
    from amn.files import write_whole
    from amn.output import strict_json
    from amn.training.recipes import recipe
    from amn.training.studies import leave_out as study

    vectors, chosen = read_vectors(data, encoder), recipe(model, preset).changed({"epochs": epochs})
    with options.shown_run() as (say, tick):
        result = study(chosen, vectors, out, first_stages, say=say, tick=tick)
    write_whole(out / "leave_out.json", strict_json(result, indent=2) + "\n")
    over = "first_stage" if first_stages else "context_mean"
    for domain, found in result.items():
        gain, cosine = found[f"gain_over_{over}"], found["cosine"]["mean"]
        console.say(f"{domain:>12}  {cosine:.4f}  gain over {over} {gain_text(gain)}  n {gain['n']}")
