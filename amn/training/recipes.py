"""Named recipes: what `python -m amn train --preset` chooses.

`card` is the model card's recipe for every network. The others were found on articles and
domains that the final figures do not use; docs/models.md tells what else was tried.
"""

from __future__ import annotations

from dataclasses import dataclass

from amn.config import MODEL_NAMES, ModelConfig, TrainConfig
from amn.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A network and how it is trained."""

    model: ModelConfig
    train: TrainConfig


#: Bounded by an hour and a half on one core for all of them, not by what they could still learn.
_EPOCHS = {"card": 3, "published": 3, "gru": 8, "gru-bounded": 3, "transformer": 5}


def card(layout: str) -> Recipe:
    """The card: MSE, AdamW 5e-4, weight decay 0.01, 20 epochs of batches of 32."""
    dropout = 0.1 if layout == "transformer" else 0.0
    return Recipe(model=ModelConfig(layout=layout, dropout=dropout), train=TrainConfig())  # type: ignore[arg-type]


def robust(layout: str) -> Recipe:
    """Cosine loss, one cycle, averaged weights; for `amn` the bounded residual."""
    if layout == "bounded":
        return Recipe(
            model=ModelConfig(layout="bounded", dropout=0.4, distrust=0.4, residual_max=0.7),
            train=TrainConfig(
                loss="cosine",
                learning_rate=1e-3,
                weight_decay=0.05,
                batch_size=128,
                epochs=8,
                schedule="one-cycle",
                ema_decay=0.999,
            ),
        )
    if layout == "stacked":
        return Recipe(
            model=ModelConfig(layout="stacked", dropout=0.6, residual_max=0.7, residual_share=0.35),
            train=TrainConfig(
                loss="cosine",
                weight_decay=0.1,
                batch_size=256,
                epochs=4,
                schedule="one-cycle",
                ema_decay=0.998,
                reversed_share=0.5,
            ),
        )
    transformer = layout == "transformer"
    return Recipe(
        model=ModelConfig(layout=layout, dropout=0.1 if transformer else 0.3),  # type: ignore[arg-type]
        train=TrainConfig(
            loss="cosine",
            learning_rate=4e-4 if transformer else 5e-4,
            weight_decay=0.1,
            batch_size=128,
            epochs=_EPOCHS[layout],
            # Validation says when the plain networks begin to learn articles by heart.
            patience_epochs=2,
            schedule="one-cycle",
            ema_decay=0.99,
        ),
    )


PRESETS = {"card": card, "robust": robust}


def recipe(model: str, preset: str) -> Recipe:
    """Look up a recipe by the names of the command line.

    Raises:
        ConfigError: no such model or preset.
    """
    if model not in MODEL_NAMES:
        raise ConfigError(f"unknown model {model!r}; choose one of {', '.join(MODEL_NAMES)}")
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[preset](MODEL_NAMES[model])
