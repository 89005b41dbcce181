"""Frozen settings of the model room, checked when they are made.

A checkpoint's manifest stores the model's config as plain JSON; `model_config_from_dict`
turns it back and refuses what it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from amn.checked import Checked, check, checked, one_of
from amn.errors import ConfigError

VECTOR_DIM = 768
CONTEXT_LENGTH = 5
#: The domain of the shipped data that no model is trained on.
UNSEEN_DOMAIN = "anarchism"
#: Sides of windows; a domain that is left out is one more, of its name.
SIDES = ("train", "validation", "test", "selection", "unseen")
ENCODER_ID = "all-mpnet-base-v2/mean/l2"

Layout = Literal["card", "bounded", "stacked", "retrieval", "published", "gru", "gru-bounded", "transformer"]

#: Exact number of trainable parameters of each layout, asserted whenever a model is built.
PARAMETERS: dict[str, int] = {
    "card": 1_472_768,
    "bounded": 1_472_768,
    "stacked": 4_620_288,
    "retrieval": 1_816_844,
    "published": 1_510_912,
    "gru": 7_095_552,
    "gru-bounded": 7_095_552,
    "transformer": 17_867_520,
}

#: Layouts on a finished AMN.
STAGED = ("stacked", "retrieval")

#: Short names used for folders and on the command line.
MODEL_NAMES: dict[str, str] = {
    "amn": "bounded",
    "stacked": "stacked",
    "retrieval": "retrieval",
    "amn-card": "card",
    "amn-published": "published",
    "gru": "gru-bounded",
    "gru-card": "gru",
    "transformer": "transformer",
}


_part = partial(checked, lambda v: 0 <= v < 1, "it must be in [0, 1)")
_share = partial(checked, lambda v: 0 <= v <= 1, "it must be in [0, 1]")
_length = partial(checked, lambda v: 0 < v <= 2, "it must be in (0, 2]")
_positive = partial(checked, lambda v: v > 0, "it must be above zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(Checked):
    """The network, and the regularisation used while it is trained.

    Sizes are fixed by the layout: a layout is a promise about the parameter count, so
    widths are not settings. `dropout` and `distrust` change training only, never a
    checkpoint's answers.
    """

    layout: Layout = checked(PARAMETERS.__contains__, f"choose one of {', '.join(PARAMETERS)}")
    dropout: float = _part(0.0)
    #: Share of training contexts that the bounded layout treats as unfamiliar, so that the
    #: answer without its residual is trained as well.
    distrust: float = _part(0.0)
    #: Largest length of the bounded residual relative to the (unit-norm) mixture.
    residual_max: float = _length(0.5)
    #: Largest residual of the second stage of the stacked layout, which keeps its first stage's
    #: own bound, and the share of it that counts in an answer.
    stage_max: float = _length(0.7)
    residual_share: float = _share(1.0)
    #: Familiarity at which the residual starts to count, and at which it counts in full.
    familiar_low: float = 0.45
    familiar_high: float = 0.65

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        good = 0.0 <= self.familiar_low < self.familiar_high <= 1.0
        advice = f"with familiar_high {self.familiar_high} it must satisfy 0 <= low < high <= 1"
        check(good, "familiar_low", self.familiar_low, advice)


def model_config_from_dict(values: dict[str, Any]) -> ModelConfig:
    """Read a model config from a manifest.

    Raises:
        ConfigError: a field is missing, unknown, or outside its range.
    """
    try:
        return ModelConfig(**values)
    except TypeError as error:
        raise ConfigError(
            f"the model config does not fit: {error}; use the version of amn-queue that wrote the checkpoint"
        ) from error


Schedule = Literal["plateau", "one-cycle", "constant"]
Loss = Literal["mse", "cosine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(Checked):
    """Everything that decides the weights of a run beside the data.

    The defaults are the recipe of the model card: MSE of the raw output, AdamW 5e-4,
    weight decay 0.01, batches of 32, 20 epochs, gradient norm clipped at 1.
    """

    loss: Loss = one_of("mse", "cosine")
    learning_rate: float = _positive(5e-4)
    weight_decay: float = checked(lambda v: v >= 0, "it must not be negative", 0.01)
    batch_size: int = _positive(32)
    epochs: int = _positive(20)
    schedule: Schedule = one_of("plateau", "one-cycle", "constant")
    warmup_fraction: float = _share(0.15)
    gradient_norm_max: float = _positive(1.0)
    #: Stop after so many epochs without a better selection score.
    patience_epochs: int = _positive(20)
    seed: int = 0
    #: Decay per step of the averaged weights; 0 keeps the last weights as they are.
    ema_decay: float = _share(0.0)
    #: The domain that is kept out of training for the final verdict.
    unseen_domain: str = UNSEEN_DOMAIN
    #: Share of the training batches that are read backwards, as more text of the same kind.
    reversed_share: float = _share(0.0)
    #: Model id of the finished first stage of a layout that has one.
    first_stage: str = ""
    #: A further domain kept out of training and used to select the epoch ("" for none).
    selection_domain: str = ""
