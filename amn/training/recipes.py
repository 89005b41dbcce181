"""Named recipes: the choices of `amn train --preset`.

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

_SHAPE = {field.name for field in dataclasses.fields(ModelConfig)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A network and how it is trained, with the names that chose them."""

    name: str
    preset: str
    model: ModelConfig
    train: TrainConfig

    def changed(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe with other values for some fields of either config."""
        shape = {name: value for name, value in values.items() if name in _SHAPE}
        rest = {name: value for name, value in values.items() if name not in _SHAPE}
        model, train = dataclasses.replace(self.model, **shape), dataclasses.replace(self.train, **rest)
        return dataclasses.replace(self, model=model, train=train)


#: The defaults: MSE, AdamW 5e-4, weight decay 0.01, 20 epochs of batches of 32.
_CARD: dict[str, dict[str, Any]] = {layout: {} for layout in MODEL_NAMES.values()}
_CARD["transformer"] = {"dropout": 0.1}

#: Cosine loss, one cycle, averaged weights; for `amn` the bounded residual. Epochs are bounded by an hour and
#: a half on one core for all of them. Validation says when plain networks begin to learn articles by heart.
_ONE_CYCLE = {"loss": "cosine", "schedule": "one-cycle"}
_PLAIN = {"dropout": 0.3, "batch_size": 128, "weight_decay": 0.1, "patience_epochs": 2, "ema_decay": 0.99}
_ROBUST: dict[str, dict[str, Any]] = {
    "bounded": {"dropout": 0.4, "distrust": 0.4, "residual_max": 0.7, "learning_rate": 1e-3}
    | {"batch_size": 128, "weight_decay": 0.05, "epochs": 8, "ema_decay": 0.999},
    "stacked": {"dropout": 0.6, "residual_max": 0.7, "residual_share": 0.35, "reversed_share": 0.5}
    | {"batch_size": 256, "weight_decay": 0.1, "epochs": 4, "ema_decay": 0.998},
    "retrieval": {"residual_max": 0.7},
    "card": {**_PLAIN, "epochs": 3},
    "published": {**_PLAIN, "epochs": 3},
    "gru": {**_PLAIN, "epochs": 8},
    "gru-bounded": {**_PLAIN, "epochs": 3},
    "transformer": {**_PLAIN, "epochs": 5, "dropout": 0.1, "learning_rate": 4e-4},
}
PRESETS = {"card": _CARD, "robust": {layout: _ONE_CYCLE | values for layout, values in _ROBUST.items()}}


def recipe(name: str, preset: str) -> Recipe:
    """Look up a recipe by the names of the command line; refuses unknown ones."""
    if name not in MODEL_NAMES:
        raise ConfigError(f"unknown model {name!r}; choose one of {', '.join(MODEL_NAMES)}")
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    layout = MODEL_NAMES[name]
    plain = Recipe(name=name, preset=preset, model=ModelConfig(layout=layout), train=TrainConfig())  # type: ignore[arg-type]
    return plain.changed(PRESETS[preset][layout])
