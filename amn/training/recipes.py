"""Named recipes: what `amn train --preset` chooses.

`card` is the model card's recipe for every network. The others were found on articles and
domains that the final figures do not use; docs/models.md tells what else was tried.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amn.config import MODEL_NAMES, ModelConfig, TrainConfig
from amn.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A network and how it is trained, with the names that chose them."""

    name: str
    preset: str
    model: ModelConfig
    train: TrainConfig

    def changed(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe with other values for some fields of either config."""
        fields = {field.name for field in dataclasses.fields(ModelConfig)}
        shape = {name: value for name, value in values.items() if name in fields}
        rest = {name: value for name, value in values.items() if name not in fields}
        return dataclasses.replace(
            self,
            model=dataclasses.replace(self.model, **shape),
            train=dataclasses.replace(self.train, **rest),
        )


#: Bounded by an hour and a half on one core for all of them, not by what they could still learn.
_EPOCHS = {"card": 3, "published": 3, "gru": 8, "gru-bounded": 3, "transformer": 5}


def _card(layout: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """MSE, AdamW 5e-4, weight decay 0.01, 20 epochs of batches of 32."""
    return {"dropout": 0.1 if layout == "transformer" else 0.0}, {}


def _robust(layout: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cosine loss, one cycle, averaged weights; for `amn` the bounded residual."""
    train: dict[str, Any] = {
        "loss": "cosine",
        "schedule": "one-cycle",
        "batch_size": 128,
        "weight_decay": 0.1,
    }
    if layout == "bounded":
        train |= {"learning_rate": 1e-3, "weight_decay": 0.05, "epochs": 8, "ema_decay": 0.999}
        return {"dropout": 0.4, "distrust": 0.4, "residual_max": 0.7}, train
    if layout == "stacked":
        train |= {"batch_size": 256, "epochs": 4, "ema_decay": 0.998, "reversed_share": 0.5}
        return {"dropout": 0.6, "residual_max": 0.7, "residual_share": 0.35}, train
    transformer = layout == "transformer"
    # Validation says when the plain networks begin to learn articles by heart.
    train |= {"epochs": _EPOCHS[layout], "patience_epochs": 2, "ema_decay": 0.99}
    train["learning_rate"] = 4e-4 if transformer else 5e-4
    return {"dropout": 0.1 if transformer else 0.3}, train


PRESETS = {"card": _card, "robust": _robust}


def recipe(name: str, preset: str) -> Recipe:
    """Look up a recipe by the names of the command line.

    Raises:
        ConfigError: no such model or preset.
    """
    if name not in MODEL_NAMES:
        raise ConfigError(f"unknown model {name!r}; choose one of {', '.join(MODEL_NAMES)}")
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    layout = MODEL_NAMES[name]
    shape, train = PRESETS[preset](layout)
    config = ModelConfig(layout=layout, **shape)  # type: ignore[arg-type]
    return Recipe(name=name, preset=preset, model=config, train=TrainConfig(**train))
