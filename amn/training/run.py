"""One training run: from vectors in reading order to a checkpoint folder with its figures."""

from __future__ import annotations

import csv
import datetime
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amn.data.dataset import Split, split_by_article
from amn.data.vectors import Index, VectorSet
from amn.errors import ConfigError
from amn.evaluation import metrics
from amn.files import write_whole, writing
from amn.model import checkpoint
from amn.training.recipes import Recipe
from amn.training.train import Tick, pick_device, resume, set_first_stage, start_run, train, write_config

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """The settings of training a recipe.

    Attributes:
        out: The run's folder; the checkpoint appears in `out/checkpoint`.
        threads: One thread repeats a run bit for bit.
        first_stage: Finished AMN under the stacked layout, and under no other.
        resume: Go on after the last epoch of a run that was killed.
    """

    out: Path
    device: str = "auto"
    threads: int = 1
    storage: str = "float32"
    first_stage: Path | None = None
    resume: bool = False


def run_training(
    recipe: Recipe, data: VectorSet, settings: RunSettings, *, say: Say, tick: Tick
) -> checkpoint.Manifest:
    """Train, judge on every side, and write the checkpoint, `log.csv` and `curve.svg`."""
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    first = checkpoint.load(settings.first_stage) if settings.first_stage else None
    recipe = with_first_stage(recipe, first, data.encoder_id)
    config, folder = recipe.train, settings.out
    split = split_by_article(
        data, unseen_domain=config.unseen_domain, selection_domain=config.selection_domain
    )
    for line in described(data, split):
        say(line)
    data_hash = data.sha256()
    write_config(folder, {"model": recipe.model.to_dict(), "train": config.to_dict(), "data": data_hash})
    run = start_run(recipe.model, config, pick_device(settings.device))
    if first is not None:
        set_first_stage(run, first.model)
    if settings.resume:
        resume(run, folder)
    model = train(
        run, data, split, config, folder=folder, tick=tick, report=lambda row: say(_epoch_line(row))
    )
    write_log(folder / "log.csv", run.history)
    plot_curve(folder / "curve.svg", run.history)
    training = {"preset": recipe.preset, "best_epoch": run.best_epoch, "epochs_run": run.epoch}
    manifest = checkpoint.save(
        model,
        folder / "checkpoint",
        name=recipe.name,
        encoder_id=data.encoder_id,
        created_utc=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        storage=settings.storage,
        records={
            "training": config.to_dict() | training,
            "data": data_record(data, split, data_hash),
            "metrics": measure_sides(model, data, split),
        },
    )
    say(f"{manifest.model_id} in {folder / 'checkpoint'}")
    for side, figures in manifest.metrics.items():
        if isinstance(figures, dict):
            say(f"{side:>11}  {_cosine_text(figures['cosine'])}  context mean {figures['context_mean']:.4f}")
    return manifest


def with_first_stage(recipe: Recipe, first: checkpoint.Checkpoint | None, encoder_id: str) -> Recipe:
    """The recipe with the id of its first stage, and with the first stage's own settings.

    Raises:
        ConfigError: The layout takes a first stage and got none, or the other way round, or the
            first stage is of another layout than AMN's, or of another encoder than the data.
    """
    if (recipe.model.layout == "stacked") != (first is not None):
        raise ConfigError(
            f"layout {recipe.model.layout} and --first-stage do not fit; give a finished AMN's folder "
            "to the stacked layout, and to no other"
        )
    if first is None:
        return recipe
    manifest = first.manifest
    if manifest.layout != "bounded":
        raise ConfigError(f"{manifest.model_id} has layout {manifest.layout}; the first stage is bounded")
    if manifest.encoder_id != encoder_id:
        raise ConfigError(
            f"{manifest.model_id} was trained on vectors of encoder {manifest.encoder_id!r}, the data is of "
            f"{encoder_id!r}; train a first stage on this data"
        )
    own = {name: manifest.config[name] for name in ("residual_max", "familiar_low", "familiar_high")}
    return recipe.changed(own | {"first_stage": manifest.model_id})


def described(data: VectorSet, split: Split) -> Iterator[str]:
    """Number, coherence and baselines of every side, before anything is trained."""
    for name, starts in split.sides().items():
        articles = len(set(data.article[starts].tolist()))
        baselines = "  ".join(f"{label} {value:.4f}" for label, value in _baselines(data, starts).items())
        yield (
            f"{name:>11}  n {len(starts):>6}  articles {articles:>4}  "
            f"coherence {metrics.coherence(data, starts):.4f}  {baselines}"
        )
    yield f"{split.dropped} windows dropped: near-duplicates of judged vectors"


def data_record(data: VectorSet, split: Split, data_hash: str) -> dict[str, Any]:
    """Returns the manifest's record of the data."""
    return {
        "source": data.source,
        "sha256": data_hash,
        "windows": {name: len(starts) for name, starts in split.sides().items()},
        "dropped_near_duplicates": split.dropped,
    }


def measure_sides(model: nn.Module, data: VectorSet, split: Split) -> dict[str, Any]:
    """Cosine with standard error by article on every side but training, and baselines."""
    result: dict[str, Any] = {}
    for name, starts in split.sides().items():
        if name != "train":
            cosines = metrics.window_cosines(model, data, starts)
            own = metrics.estimate(cosines, data.article[starts]).to_dict()
            result[name] = {"cosine": own} | _baselines(data, starts)
    if "unseen" in result:
        delta = result["unseen"]["cosine"]["mean"] - result["test"]["cosine"]["mean"]
        result["ood_delta"] = round(delta, 5)
    return result


def _baselines(data: VectorSet, starts: Index) -> dict[str, float]:
    return {
        label: round(float(metrics.window_cosines(predict, data, starts).mean()), 5)
        for label, predict in metrics.BASELINES.items()
    }


def _cosine_text(figures: dict[str, float]) -> str:
    return f"cosine {figures['mean']:.4f} +- {figures['standard_error']:.4f}  n {figures['n']}"


def _epoch_line(row: dict[str, float]) -> str:
    figures = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name.endswith("cosine"))
    return f"epoch {row['epoch']:>3.0f}  loss {row['train_loss']:.6f}  {figures}"


def write_log(path: Path, history: list[dict[str, float]]) -> None:
    """One row of figures an epoch; after a resume those before the kill as well."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    write_whole(path, stream.getvalue())


def plot_curve(path: Path, history: list[dict[str, float]]) -> None:
    """Loss and cosines by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["train_loss"] for row in history], marker=".")
    left.set(title="training loss", xlabel="epoch")
    for name in (key for key in history[0] if key.endswith("cosine")):
        right.plot(epochs, [row[name] for row in history], marker=".", label=name.removesuffix("_cosine"))
    right.set(title="cosine with the true next vector", xlabel="epoch")
    right.legend()
    with writing(path) as file:
        figure.savefig(file, format="svg")
