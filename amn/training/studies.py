"""Studies of several runs: every model of docs/models.md, and AMN without each domain in turn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from amn.config import STAGED, UNSEEN_DOMAIN
from amn.data.vectors import DRAWN, VectorSet
from amn.errors import ConfigError
from amn.evaluation import metrics
from amn.manifest import MANIFEST
from amn.model import checkpoint
from amn.model.folded import fold
from amn.training.recipes import Recipe, recipe
from amn.training.run import RunSettings, Say, run_training
from amn.training.train import Tick

#: Rows of the table: model, preset, changes of it, type of the stored weights, and whether it is small.
_TABLE: tuple[tuple[str, str, dict[str, Any], str, bool], ...] = (
    ("amn", "robust", {}, "float32", True),
    ("stacked", "robust", {}, "float16", True),
    ("retrieval", "robust", {}, "float16", True),
    ("gru-card", "robust", {}, "float32", False),
    ("amn-card", "card", {}, "float32", True),
    ("amn-published", "card", {"patience_epochs": 2}, "float32", True),
    ("transformer", "robust", {}, "float32", False),
    ("gru", "robust", {}, "float16", False),
)


def train_missing(chosen: Recipe, data: VectorSet, settings: RunSettings, *, say: Say, tick: Tick) -> Path:
    """The checkpoint of a run, which is trained or resumed where it is not finished."""
    folder = settings.out / "checkpoint"
    if not (folder / MANIFEST).is_file():
        run_training(chosen, data, replace(settings, resume=True), say=say, tick=tick)
    return folder


def reproduce(data: VectorSet, out: Path, *, quick: bool, say: Say, tick: Tick) -> list[Path]:
    """Train the models of the table that are missing; returns the checkpoints.

    Hours on one core. `quick` trains the small networks for one epoch each: the figures
    are lower, the order of the models is not.
    """
    folders = []
    for name, preset, changes, storage, small in _TABLE:
        if small or not quick:
            chosen = recipe(name, preset).changed(changes | ({"epochs": 1} if quick else {}))
            first = out / "amn" / "checkpoint" if name in STAGED else None
            settings = RunSettings(out=out / name, storage=storage, first_stage=first)
            folders.append(train_missing(chosen, data, settings, say=say, tick=tick))
    return folders


def leave_out(
    chosen: Recipe, data: VectorSet, out: Path, stages: Path | None, *, say: Say, tick: Tick
) -> dict[str, Any]:
    """Cosine and paired gain on all windows of each domain, of a model that was trained without it.

    One unseen domain is one draw. This repeats the question for every domain: does a model that
    never saw it still beat the mean of the context there? The unseen domain of the main split
    is judged by the main model.

    Args:
        stages: An earlier study's `out`, whose models are the first stages; they are what is gained over.

    Raises:
        ConfigError: A run of this study is on another first stage, or a first stage has seen its domain.
    """
    result: dict[str, Any] = {}
    for domain in sorted(set(data.article_domain[data.articles_of(DRAWN)].tolist()) - {UNSEEN_DOMAIN}):
        name = f"without_{domain}"
        first = stages / name / "checkpoint" if stages else None
        settings = RunSettings(out=out / name, first_stage=first)
        earlier = checkpoint.load(first) if first else None
        if earlier and earlier.manifest.training["selection_domain"] != domain:
            raise ConfigError(f"{first} was trained with {domain}; name a folder of `amn leave-out` for amn")
        path = train_missing(chosen.changed({"selection_domain": domain}), data, settings, say=say, tick=tick)
        made = checkpoint.load(path)
        if earlier and made.manifest.training["first_stage"] != earlier.manifest.model_id:
            raise ConfigError(f"{path} is on another first stage than {first}; name another --out")
        starts = data.window_starts()
        starts = starts[data.article_domain[data.article[starts]] == domain]
        cosines = metrics.window_cosines(fold(made.model), data, starts)
        gains = cosines - metrics.window_cosines(metrics.context_mean, data, starts)
        found = {"cosine": cosines, "gain_over_context_mean": gains}
        if earlier:
            cosines_before = metrics.window_cosines(fold(earlier.model), data, starts)
            found["gain_over_first_stage"] = cosines - cosines_before
        articles = data.article[starts]
        result[domain] = {key: metrics.estimate(row, articles).to_dict() for key, row in found.items()}
    return result
