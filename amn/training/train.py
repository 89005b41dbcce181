"""The training loop, in reading order: batches, one step, one epoch, the run.

Everything random in an epoch follows from (seed, epoch), and the state is written between
epochs. A run that was killed and resumed therefore gives the same weights as one that was
not, bit for bit on one thread.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amn.config import ModelConfig, TrainConfig
from amn.data.dataset import Split
from amn.data.vectors import Index, VectorSet, chunks
from amn.errors import DataError
from amn.evaluation.metrics import window_cosines
from amn.files import write_whole, writing
from amn.model.layouts import build
from amn.model.network import Grounded

STATE_FILE = "state.pt"
CONFIG_FILE = "config.json"
PLATEAU_FACTOR = 0.5
PLATEAU_PATIENCE = 3

OnEpoch = Callable[[dict[str, float]], None]
Tick = Callable[[int, int, int], None]


@dataclass(slots=True, kw_only=True)
class Run:
    """All that a run needs to go on after an epoch; this is what state.pt holds."""

    model: nn.Module
    averaged: nn.Module
    best: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    step: int = 0
    best_score: float = -math.inf
    best_epoch: int = 0
    plateau_scale: float = 1.0
    plateau_epochs: int = 0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def start_run(model_config: ModelConfig, config: TrainConfig, device: torch.device) -> Run:
    """Fresh weights that depend on the seed alone."""
    torch.manual_seed(config.seed)
    model = build(model_config).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    # Biases, gains and scores are few and need no pull towards zero.
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    return Run(model=model, averaged=copy.deepcopy(model), best={}, optimizer=optimizer)


def set_first_stage(run: Run, first: nn.Module) -> None:
    """Give the stacked layout its finished first stage; training leaves it alone."""
    for model in (run.model, run.averaged):
        model.first.load_state_dict(first.state_dict())  # type: ignore[union-attr]


def fit_familiar(model: nn.Module, data: VectorSet, train: Index) -> None:
    """Give a bounded layout the subspace of its training contexts."""
    if not isinstance(model, Grounded):
        return
    means = np.concatenate([data.windows(train[rows])[:, :5].mean(1) for rows in chunks(len(train))])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    model.fit_familiar(torch.from_numpy(means).to(model.familiar.device))


def learning_rate(config: TrainConfig, run: Run, steps_total: int) -> float:
    """Learning rate of the next step."""
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "plateau":
        return config.learning_rate * run.plateau_scale
    warmup = max(1, int(steps_total * config.warmup_fraction))
    if run.step < warmup:
        return config.learning_rate * (run.step + 1) / warmup
    done = (run.step - warmup) / max(1, steps_total - warmup)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def loss_of(model: nn.Module, windows: Tensor, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Loss and mean cosine of windows (B, 6, 768)."""
    raw, out = model(windows[:, :5], return_raw=True)
    target = windows[:, 5]
    cosine = (out * target).sum(-1).mean()
    if config.loss == "mse":
        return nn.functional.mse_loss(raw, target), cosine
    return 1.0 - cosine, cosine


def train_epoch(run: Run, data: VectorSet, train: Index, config: TrainConfig, tick: Tick) -> dict[str, float]:
    """One pass over the training windows in an order that (seed, epoch) decides."""
    device = next(run.model.parameters()).device
    draw = np.random.default_rng((config.seed, run.epoch))
    torch.manual_seed(config.seed * 100_003 + run.epoch)
    order = draw.permutation(train)
    batches = max(1, len(order) // config.batch_size)
    total = {"loss": 0.0, "cosine": 0.0}
    run.model.train()
    for number in range(batches):
        index = np.sort(order[number * config.batch_size : (number + 1) * config.batch_size])
        windows = torch.from_numpy(data.windows(index)).to(device)
        if config.reversed_share and draw.random() < config.reversed_share:
            windows = windows.flip(1)
        loss, cosine = train_step(run, windows, config, batches * config.epochs)
        total["loss"] += loss
        total["cosine"] += cosine
        tick(run.epoch, number + 1, batches)
    return {f"train_{name}": value / batches for name, value in total.items()}


def train_step(run: Run, windows: Tensor, config: TrainConfig, steps_total: int) -> tuple[float, float]:
    """One update of the weights, and of their running average."""
    rate = learning_rate(config, run, steps_total)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    loss, cosine = loss_of(run.model, windows, config)
    if not torch.isfinite(loss):
        raise DataError(f"loss is {loss.item()} at step {run.step}; lower the learning rate")
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(run.model.parameters(), config.gradient_norm_max)
    run.optimizer.step()
    run.step += 1
    with torch.no_grad():
        # Early averages forget the first weights faster, as in Adam's own correction.
        decay = min(config.ema_decay, (1 + run.step) / (10 + run.step))
        decay = decay if config.ema_decay else 0.0
        pairs = zip(run.averaged.parameters(), run.model.parameters(), strict=True)
        for average, current in pairs:
            average.lerp_(current, 1.0 - decay)
    return loss.item(), cosine.item()


def measure_epoch(run: Run, data: VectorSet, split: Split) -> dict[str, float]:
    """Cosine of the averaged weights on validation articles and on the selection domain."""
    run.averaged.eval()
    device = next(run.averaged.parameters()).device

    def predict(x: Tensor) -> Tensor:
        predicted: Tensor = run.averaged(x.to(device))
        return predicted

    values = {"validation_cosine": float(window_cosines(predict, data, split.validation).mean())}
    if len(split.selection):
        values["selection_cosine"] = float(window_cosines(predict, data, split.selection).mean())
    values["score"] = float(np.mean(list(values.values())))
    return values


def after_epoch(run: Run, row: dict[str, float], config: TrainConfig) -> None:
    """Keep the best weights, and let a plateau halve the learning rate."""
    run.epoch += 1
    run.history.append({"epoch": run.epoch, "learning_rate": run.optimizer.param_groups[0]["lr"]} | row)
    if row["score"] > run.best_score:
        run.best_score, run.best_epoch, run.plateau_epochs = row["score"], run.epoch, 0
        run.best = {k: v.detach().cpu().clone() for k, v in run.averaged.state_dict().items()}
        return
    run.plateau_epochs += 1
    if run.plateau_epochs > PLATEAU_PATIENCE:
        run.plateau_scale *= PLATEAU_FACTOR
        run.plateau_epochs = 0


def train(
    run: Run,
    data: VectorSet,
    split: Split,
    config: TrainConfig,
    *,
    folder: Path,
    report: OnEpoch = lambda row: None,
    tick: Tick = lambda epoch, batch, batches: None,
) -> nn.Module:
    """Train until the epochs are done or patience ends; return the best weights' model.

    Raises:
        DataError: the loss became NaN or infinite.
    """
    if run.epoch == 0:
        fit_familiar(run.model, data, split.train)
        run.averaged.load_state_dict(run.model.state_dict())
    while run.epoch < config.epochs and run.epoch - run.best_epoch < config.patience_epochs:
        row = train_epoch(run, data, split.train, config, tick)
        row |= measure_epoch(run, data, split)
        after_epoch(run, row, config)
        save_state(run, folder)
        report(run.history[-1])
    model = run.averaged.cpu()
    model.load_state_dict(run.best)
    return model.eval()


def save_state(run: Run, folder: Path) -> None:
    """Write state.pt in one step: a kill while writing leaves the previous epoch."""
    state: dict[str, Any] = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    for name in ("model", "averaged", "optimizer"):
        state[name] = state[name].state_dict()
    with writing(folder / STATE_FILE) as file:
        torch.save(state, file)


def resume(run: Run, folder: Path) -> None:
    """Continue from state.pt of the run folder, if one was written."""
    path = folder / STATE_FILE
    if not path.is_file():
        return
    state = torch.load(path, weights_only=True)
    for name in ("model", "averaged", "optimizer"):
        getattr(run, name).load_state_dict(state.pop(name))
    for name, value in state.items():
        setattr(run, name, value)


def write_config(folder: Path, values: dict[str, Any]) -> None:
    """Save the run's config, or refuse to mix two runs in one folder.

    Raises:
        DataError: the folder holds a run with another config.
    """
    path = folder / CONFIG_FILE
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file() and json.loads(path.read_text()) != values:
        raise DataError(f"{folder} holds a run with other settings; choose another --out")
    write_whole(path, json.dumps(values, indent=2) + "\n")
