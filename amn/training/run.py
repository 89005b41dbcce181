"""One training run, from vectors in reading order to a checkpoint folder with its figures."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from amn.config import STAGED
from amn.data.dataset import Split, split_by_article
from amn.data.vectors import VectorSet
from amn.errors import ConfigError, DataError
from amn.evaluation import metrics, plots
from amn.files import write_whole
from amn.manifest import check_one_encoder
from amn.model import checkpoint
from amn.model.folded import fold
from amn.model.retrieval import RetrievalAMN
from amn.training.filing import fill
from amn.training.recipes import Recipe
from amn.training.train import Tick, start_run, train

Say = Callable[[str], None]
#: What a memory has of a training config: it is filed and fitted, without epochs and their settings.
FILED = {"seed", "unseen_domain", "selection_domain", "first_stage"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """The settings of training a recipe.

    Attributes:
        out: The run's folder; the checkpoint appears in `out/checkpoint`.
        threads: One thread repeats a run bit for bit.
        first_stage: Finished AMN under a layout on top of one, and under no other.
        resume: Go on after the last epoch of a run that was killed.
    """

    out: Path
    device: str = "auto"
    threads: int = 1
    storage: str = "float32"
    first_stage: Path | None = None
    resume: bool = False


def run_training(recipe: Recipe, data: VectorSet, settings: RunSettings, *, say: Say, tick: Tick) -> None:
    """Train, judge on every side, and write the checkpoint, `log.csv` and `curve.svg`.

    Raises:
        ConfigError: Recipe, first stage and data do not belong together.
        DataError: The folder holds another run, or the loss became NaN or infinite.
    """
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    first = checkpoint.load(settings.first_stage) if settings.first_stage else None
    recipe = with_first_stage(recipe, first)
    config, folder = recipe.train, settings.out
    split = split_by_article(
        data, unseen_domain=config.unseen_domain, selection_domain=config.selection_domain
    )
    if first:
        check_one_encoder({first.manifest.model_id: first.manifest, data.source: data})
    about = describe(data, split, say)
    write_config(
        folder, {"model": recipe.model.to_dict(), "train": config.to_dict(), "data": about["sha256"]}
    )
    device = "cpu" if recipe.model.layout == "retrieval" else settings.device  # a memory is filed on the CPU
    run = start_run(recipe.model, config, device, first.model if first else None)
    if settings.resume:
        run.resume(folder)
    predict: metrics.Predict
    if isinstance(run.model, RetrievalAMN):
        model: nn.Module = fill(run.model, data, split, config.seed, tick)
        predict = fold(model)  # a search in torch alone is slow
        used = {name: value for name, value in config.to_dict().items() if name in FILED}
    else:
        predict = model = train(
            run, data, split, config, folder=folder, tick=tick, report=lambda row: say(_line(row))
        )
        write_history(folder, run.history)
        used = config.to_dict() | {"best_epoch": run.best_epoch, "epochs_run": run.epoch}
    manifest = checkpoint.save(
        model,
        folder / "checkpoint",
        name=recipe.name,
        encoder_id=data.encoder_id,
        storage=settings.storage,
        records={
            "training": {"preset": recipe.preset} | used,
            "data": about,
            "metrics": measure_sides(predict, data, split, say),
        },
    )
    say(f"{manifest.model_id} in {folder / 'checkpoint'}")


def with_first_stage(recipe: Recipe, first: checkpoint.Checkpoint | None) -> Recipe:
    """The recipe with the id of its first stage, and with the first stage's own settings.

    Refuses a first stage of another layout than AMN's.
    """
    if (recipe.model.layout in STAGED) != (first is not None):
        raise ConfigError(
            f"layout {recipe.model.layout} and --first-stage do not fit; give a finished AMN's folder "
            f"to {' or '.join(STAGED)}, and to no other"
        )
    if first is None:
        return recipe
    manifest = first.manifest
    if manifest.layout != "bounded":
        raise ConfigError(f"{manifest.model_id} has layout {manifest.layout}; the first stage is bounded")
    own = {name: manifest.config[name] for name in ("residual_max", "familiar_low", "familiar_high")}
    return recipe.changed(own | {"first_stage": manifest.model_id})


def describe(data: VectorSet, split: Split, say: Say) -> dict[str, Any]:
    """Tells number, coherence and baselines of every side; returns the manifest's record of the data."""
    for name, starts in split.sides().items():
        articles, coherence = len(np.unique(data.article[starts])), metrics.coherence(data, starts)
        baselines = metrics.mean_baselines(data, starts).items()
        said = "  ".join(f"{label} {value:.4f}" for label, value in baselines)
        say(f"{name:>11}  n {len(starts):>6}  articles {articles:>4}  coherence {coherence:.4f}  {said}")
    say(f"{split.dropped} windows dropped: near-duplicates of judged vectors")
    return {
        "source": data.source,
        "sha256": data.sha256(),
        "encoder_sha256": data.encoder_sha256,
        "windows": {name: len(starts) for name, starts in split.sides().items()},
        "dropped_near_duplicates": split.dropped,
    }


def write_config(folder: Path, values: dict[str, Any]) -> None:
    """Saves the run's config, or refuses to mix two runs in one folder."""
    path = folder / "config.json"
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file() and json.loads(path.read_text("utf-8")) != values:
        raise DataError(f"{folder} holds a run with other settings; choose another --out")
    write_whole(path, json.dumps(values, indent=2) + "\n")


def measure_sides(predict: metrics.Predict, data: VectorSet, split: Split, say: Say) -> dict[str, Any]:
    """Cosine with standard error by article on every side but training, and baselines."""
    result: dict[str, Any] = {}
    for name, starts in split.sides().items():
        if name != "train":
            own = metrics.estimate(metrics.window_cosines(predict, data, starts), data.article[starts])
            result[name] = {"cosine": own.to_dict()} | metrics.mean_baselines(data, starts)
            say(f"{name:>11}  cosine {own.mean:.4f} +- {own.standard_error:.4f}  n {own.n}")
    if "unseen" in result:
        delta = result["unseen"]["cosine"]["mean"] - result["test"]["cosine"]["mean"]
        result["ood_delta"] = round(delta, 5)
    return result


def _line(row: dict[str, float]) -> str:
    figures = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name.endswith("cosine"))
    return f"epoch {row['epoch']:>3.0f}  loss {row['train_loss']:.6f}  {figures}"


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """Writes a row of figures for each epoch, those before a kill too, and the cosines as a plot."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    write_whole(folder / "log.csv", stream.getvalue())
    names = [name for name in history[0] if name.endswith("cosine")]
    curves = {name: {row["epoch"]: row[name] for row in history} for name in names}
    write_whole(folder / "curve.svg", plots.plot("Cosine with the true next vector, by epoch", curves))
