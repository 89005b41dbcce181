"""Frozen settings of the model room, checked when they are made.

A checkpoint's manifest stores the model's config as plain JSON; `model_config_from_dict`
turns it back and refuses what it does not know.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from amn.errors import ConfigError

VECTOR_DIM = 768
CONTEXT_LENGTH = 5
ENCODER_ID = "all-mpnet-base-v2/mean/l2"

Layout = Literal["card", "bounded", "stacked", "published", "gru", "gru-bounded", "transformer"]

#: Exact number of trainable parameters of each layout, asserted whenever a model is built.
PARAMETERS: dict[str, int] = {
    "card": 1_472_768,
    "bounded": 1_472_768,
    "stacked": 4_620_288,
    "published": 1_510_912,
    "gru": 7_095_552,
    "gru-bounded": 7_095_552,
    "transformer": 17_867_520,
}

#: Short names used for folders and on the command line.
MODEL_NAMES: dict[str, str] = {
    "amn": "bounded",
    "stacked": "stacked",
    "amn-card": "card",
    "amn-published": "published",
    "gru": "gru-bounded",
    "gru-card": "gru",
    "transformer": "transformer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The network, and the regularisation used while it is trained.

    Sizes are fixed by the layout: a layout is a promise about the parameter count, so
    widths are not settings. `dropout` and `distrust` change training only, never a
    checkpoint's answers.
    """

    layout: Layout
    dropout: float = 0.0
    #: Share of training contexts that the bounded layout treats as unfamiliar, so that the
    #: answer without its residual is trained as well.
    distrust: float = 0.0
    #: Largest length of the bounded residual relative to the (unit-norm) mixture.
    residual_max: float = 0.5
    #: Largest residual of the second stage of the stacked layout, which keeps its first stage's
    #: own bound, and the share of it that counts in an answer.
    stage_max: float = 0.7
    residual_share: float = 1.0
    #: Familiarity at which the residual starts to count, and at which it counts in full.
    familiar_low: float = 0.45
    familiar_high: float = 0.65

    def __post_init__(self) -> None:
        if self.layout not in PARAMETERS:
            raise ConfigError(f"unknown layout {self.layout!r}; choose one of {', '.join(PARAMETERS)}")
        for name in ("dropout", "distrust"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        for name in ("residual_max", "stage_max"):
            if not 0.0 < getattr(self, name) <= 2.0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be in (0, 2]")
        if not 0.0 <= self.residual_share <= 1.0:
            raise ConfigError(f"residual_share is {self.residual_share}; it must be in [0, 1]")
        if not 0.0 <= self.familiar_low < self.familiar_high <= 1.0:
            raise ConfigError(
                f"familiar_low {self.familiar_low} and familiar_high {self.familiar_high} "
                "must satisfy 0 <= low < high <= 1"
            )

    @property
    def parameters(self) -> int:
        """Parameter count that the layout promises."""
        return PARAMETERS[self.layout]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return dataclasses.asdict(self)


def model_config_from_dict(values: dict[str, Any]) -> ModelConfig:
    """Read a model config from a manifest.

    Raises:
        ConfigError: a field is missing, unknown, or outside its range.
    """
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(
            f"unknown model settings {unknown}; this version knows {sorted(known)}. "
            "Use the version of amn-queue that wrote the checkpoint"
        )
    try:
        return ModelConfig(**values)
    except TypeError as error:
        raise ConfigError(f"the model config is incomplete: {error}") from error


Schedule = Literal["plateau", "one-cycle", "constant"]
Loss = Literal["mse", "cosine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that decides the weights of a run beside the data.

    The defaults are the recipe of the model card: MSE of the raw output, AdamW 5e-4,
    weight decay 0.01, batches of 32, 20 epochs, gradient norm clipped at 1.
    """

    loss: Loss = "mse"
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    batch_size: int = 32
    epochs: int = 20
    schedule: Schedule = "plateau"
    warmup_fraction: float = 0.15
    gradient_norm_max: float = 1.0
    #: Stop after so many epochs without a better selection score.
    patience_epochs: int = 20
    seed: int = 0
    #: Decay per step of the averaged weights; 0 keeps the last weights as they are.
    ema_decay: float = 0.0
    #: Which domain is kept out of training for the final verdict.
    unseen_domain: str = "anarchism"
    #: Share of the training batches that are read backwards, as more text of the same kind.
    reversed_share: float = 0.0
    #: Model id of the finished first stage of the stacked layout.
    first_stage: str = ""
    #: A further domain kept out of training and used to select the epoch ("" for none).
    selection_domain: str = ""

    def __post_init__(self) -> None:
        positive = {
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "gradient_norm_max": self.gradient_norm_max,
            "patience_epochs": self.patience_epochs,
        }
        for name, value in positive.items():
            if not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above zero")
        for name in ("ema_decay", "warmup_fraction", "reversed_share"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} is {value}; it must be in [0, 1]")
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay is {self.weight_decay}; it must not be negative")
        if self.loss not in ("mse", "cosine"):
            raise ConfigError(f"loss is {self.loss!r}; choose mse or cosine")
        if self.schedule not in ("plateau", "one-cycle", "constant"):
            raise ConfigError(f"schedule is {self.schedule!r}; choose plateau, one-cycle or constant")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the run folder and the manifest."""
        return dataclasses.asdict(self)
