"""`python -m amn train`: one command from a vector file to a checkpoint folder."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from amn.config import MODEL_NAMES, ModelConfig, TrainConfig
from amn.data.dataset import Split, split_by_article
from amn.data.readers import read_vectors
from amn.data.vectors import VectorSet
from amn.errors import ConfigError
from amn.evaluation import metrics
from amn.model import checkpoint
from amn.training import runlog
from amn.training.recipes import PRESETS, Recipe, recipe
from amn.training.train import pick_device, resume, set_first_stage, start_run, train, write_config

console = Console(stderr=True, markup=False, emoji=False)

#: Options that replace one value of the preset.
OVERRIDES: dict[str, type] = {
    "epochs": int,
    "batch-size": int,
    "learning-rate": float,
    "weight-decay": float,
    "patience-epochs": int,
    "ema-decay": float,
    "seed": int,
    "unseen-domain": str,
    "selection-domain": str,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the train command."""
    parser.add_argument("--model", required=True, choices=list(MODEL_NAMES))
    parser.add_argument("--data", required=True, type=Path, help=".npz, folder of .npy, .parquet")
    parser.add_argument("--encoder", default="", help="where the file does not name it")
    parser.add_argument("--out", required=True, type=Path, help="run folder, e.g. runs/amn")
    parser.add_argument("--preset", default="card", choices=list(PRESETS))
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--threads", type=int, default=1, help="1 repeats bit for bit")
    parser.add_argument("--first-stage", type=Path, help="finished AMN under the stacked layout")
    parser.add_argument("--resume", action="store_true", help="go on after a kill")
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--distrust", type=float)
    parser.add_argument("--residual-max", type=float)
    parser.add_argument("--storage", default="float32", choices=list(checkpoint.STORAGE))
    for name, kind in OVERRIDES.items():
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS if kind is str else None)


def chosen_recipe(options: argparse.Namespace) -> Recipe:
    """The preset with the options of the command line put over it."""
    base = recipe(options.model, options.preset)
    names = [name.replace("-", "_") for name in OVERRIDES]
    changed = {n: getattr(options, n) for n in names if getattr(options, n) is not None}
    shape = {n: getattr(options, n) for n in ("dropout", "distrust", "residual_max")}
    shape = {name: value for name, value in shape.items() if value is not None}
    return Recipe(
        model=ModelConfig(**(base.model.to_dict() | shape)),
        train=TrainConfig(**(base.train.to_dict() | changed)),
    )


def with_first_stage(chosen: Recipe, first: checkpoint.Checkpoint | None) -> Recipe:
    """The recipe with the id of its first stage, and with the first stage's own settings.

    Raises:
        ConfigError: the layout takes a first stage and got none, or the other way round, or the
            first stage is of another layout than AMN's.
    """
    if (chosen.model.layout == "stacked") != (first is not None):
        raise ConfigError(
            f"layout {chosen.model.layout} and --first-stage do not fit; give a finished AMN's folder "
            "to the stacked layout, and to no other"
        )
    if first is None:
        return chosen
    manifest = first.manifest
    if manifest.layout != "bounded":
        raise ConfigError(f"{manifest.model_id} has layout {manifest.layout}; the first stage is bounded")
    own = {name: manifest.config[name] for name in ("residual_max", "familiar_low", "familiar_high")}
    return Recipe(
        model=dataclasses.replace(chosen.model, **own),
        train=dataclasses.replace(chosen.train, first_stage=manifest.model_id),
    )


def run_train(options: argparse.Namespace) -> int:
    """Train, judge on every side, and write `<out>/checkpoint`."""
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    chosen = chosen_recipe(options)
    first = checkpoint.load(options.first_stage) if options.first_stage else None
    chosen = with_first_stage(chosen, first)
    data = read_vectors(options.data, options.encoder)
    split = split_by_article(
        data,
        unseen_domain=chosen.train.unseen_domain,
        selection_domain=chosen.train.selection_domain,
    )
    describe_split(data, split)
    data_hash = data.sha256()
    saved = {"model": chosen.model.to_dict(), "train": chosen.train.to_dict(), "data": data_hash}
    write_config(options.out, saved)
    run = start_run(chosen.model, chosen.train, pick_device(options.device))
    if first is not None:
        set_first_stage(run, first.model)
    if options.resume:
        resume(run, options.out)
    with runlog.RunLog(options.out, chosen.train.epochs, console) as log:
        model = train(run, data, split, chosen.train, folder=options.out, report=log.report, tick=log.tick)
    runlog.write_log(options.out, run.history)
    runlog.plot_curve(options.out, run.history)
    folder = options.out / "checkpoint"
    manifest = checkpoint.save(
        model,
        folder,
        name=options.model,
        encoder_id=data.encoder_id,
        created_utc=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        storage=options.storage,
        records={
            "training": chosen.train.to_dict()
            | {"preset": options.preset, "best_epoch": run.best_epoch, "epochs_run": run.epoch},
            "data": data_record(data, split, data_hash),
            "metrics": judge_sides(model, data, split),
        },
    )
    console.print(f"{manifest.model_id} in {folder}")
    for side, figures in manifest.metrics.items():
        if isinstance(figures, dict):
            console.print(
                f"{side:>11}  cosine {figures['cosine']['mean']:.4f} "
                f"+- {figures['cosine']['standard_error']:.4f}  context mean "
                f"{figures['context_mean']:.4f}  n {figures['cosine']['n']}"
            )
    return 0


def describe_split(data: VectorSet, split: Split) -> None:
    """Print n, coherence and baselines of every side before anything is trained."""
    for name, starts in split.sides().items():
        articles = len(set(data.article[starts].tolist()))
        baselines = "  ".join(
            f"{label} {metrics.window_cosines(predict, data, starts).mean():.4f}"
            for label, predict in metrics.BASELINES.items()
        )
        console.print(
            f"{name:>11}  n {len(starts):>6}  articles {articles:>4}  "
            f"coherence {metrics.coherence(data, starts):.4f}  {baselines}"
        )
    console.print(f"{split.dropped} windows dropped: near-duplicates of judged vectors")


def data_record(data: VectorSet, split: Split, data_hash: str) -> dict[str, Any]:
    """What the manifest says of the data."""
    return {
        "source": data.source,
        "sha256": data_hash,
        "windows": {name: len(starts) for name, starts in split.sides().items()},
        "dropped_near_duplicates": split.dropped,
    }


def judge_sides(model: nn.Module, data: VectorSet, split: Split) -> dict[str, Any]:
    """Cosine with standard error by article on every side but training, and baselines."""
    result: dict[str, Any] = {}
    for name, starts in split.sides().items():
        if name == "train":
            continue
        cosines = metrics.window_cosines(model, data, starts)
        result[name] = {"cosine": metrics.estimate(cosines, data.article[starts]).to_dict()} | {
            label: round(float(metrics.window_cosines(predict, data, starts).mean()), 5)
            for label, predict in metrics.BASELINES.items()
        }
    if "unseen" in result:
        delta = result["unseen"]["cosine"]["mean"] - result["test"]["cosine"]["mean"]
        result["ood_delta"] = round(delta, 5)
    return result
