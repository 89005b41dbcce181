"""The training loop, in reading order: a run's state, its learning rate, one epoch, all of them.

Everything random in an epoch follows from (seed, epoch), and the state is written between
epochs. A run that was killed and resumed therefore gives the same weights as one that was
not, bit for bit on one thread.
"""

from __future__ import annotations

import copy
import dataclasses
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
from amn.data.vectors import VectorSet, chunks
from amn.errors import DataError
from amn.evaluation.metrics import window_cosines
from amn.files import writing
from amn.model.layouts import build
from amn.model.network import Grounded

STATE_FILE = "state.pt"
PLATEAU_FACTOR = 0.5
PLATEAU_PATIENCE = 3
_NETWORKS = ("model", "averaged", "optimizer")

#: Called after each batch: the epoch from 0, the batches done, and those of an epoch.
Tick = Callable[[int, int, int], None]


@dataclass(slots=True, kw_only=True)
class Run:
    """All that a run needs to go on after an epoch; `state.pt` holds it."""

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

    def save(self, folder: Path) -> None:
        """Writes state.pt in one step: a kill while writing leaves the previous epoch."""
        state: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        state |= {name: state[name].state_dict() for name in _NETWORKS}
        with writing(folder / STATE_FILE) as file:
            torch.save(state, file)

    def resume(self, folder: Path) -> None:
        """Continues from state.pt of the run folder, if one was written."""
        if not (folder / STATE_FILE).is_file():
            return
        for name, value in torch.load(folder / STATE_FILE, weights_only=True).items():
            if name in _NETWORKS:
                getattr(self, name).load_state_dict(value)
            else:
                setattr(self, name, value)


def start_run(
    model_config: ModelConfig, config: TrainConfig, device: str = "auto", first_stage: nn.Module | None = None
) -> Run:
    """Fresh weights that depend on the seed alone; a layout on top of AMN gets its finished first stage.

    Args:
        device: Name of PyTorch's device; `auto` takes CUDA, then MPS, then the CPU.
    """
    if device == "auto":
        mps = "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cuda" if torch.cuda.is_available() else mps
    torch.manual_seed(config.seed)
    model = build(model_config).to(device)
    if first_stage is not None:
        model.first.load_state_dict(first_stage.state_dict())  # type: ignore[union-attr]
    trained = [p for p in model.parameters() if p.requires_grad]
    # Biases, gains and scores are few and need no pull towards zero.
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    return Run(model=model, averaged=copy.deepcopy(model), best={}, optimizer=optimizer)


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


def train(
    run: Run,
    data: VectorSet,
    split: Split,
    config: TrainConfig,
    *,
    folder: Path,
    report: Callable[[dict[str, float]], None] = lambda row: None,
    tick: Tick = lambda epoch, batch, batches: None,
) -> nn.Module:
    """Train until the epochs are done or patience ends; return the best weights' model.

    Raises:
        DataError: The loss became NaN or infinite.
    """
    if run.epoch == 0 and isinstance(run.model, Grounded):
        # A bounded layout trusts the subspace of its training contexts.
        means = np.concatenate(
            [data.windows(split.train[at])[:, :5].mean(1) for at in chunks(len(split.train))]
        )
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        run.model.fit_familiar(torch.from_numpy(means).to(run.model.familiar.device))
        run.averaged.load_state_dict(run.model.state_dict())
    while run.epoch < config.epochs and run.epoch - run.best_epoch < config.patience_epochs:
        row = train_epoch(run, data, split, config, tick) | measure_epoch(run, data, split)
        after_epoch(run, row)
        run.save(folder)
        report(run.history[-1])
    model = run.averaged.cpu()
    model.load_state_dict(run.best)
    return model.eval()


def train_epoch(run: Run, data: VectorSet, split: Split, config: TrainConfig, tick: Tick) -> dict[str, float]:
    """One pass over the training windows in an order that (seed, epoch) decides."""
    device = next(run.model.parameters()).device
    draw = np.random.default_rng((config.seed, run.epoch))
    torch.manual_seed(config.seed * 100_003 + run.epoch)
    order = draw.permutation(split.train)
    batches = max(1, len(order) // config.batch_size)
    total = {"train_loss": 0.0, "train_cosine": 0.0}
    run.model.train()
    for batch in range(batches):
        index = np.sort(order[batch * config.batch_size : (batch + 1) * config.batch_size])
        windows = torch.from_numpy(data.windows(index)).to(device)  # (B, 6, 768)
        if config.reversed_share and draw.random() < config.reversed_share:
            windows = windows.flip(1)
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(config, run, batches * config.epochs)
        raw, out = run.model(windows[:, :5], return_raw=True)
        target = windows[:, 5]
        cosine = (out * target).sum(-1).mean()
        loss = nn.functional.mse_loss(raw, target) if config.loss == "mse" else 1.0 - cosine
        if not torch.isfinite(loss):
            raise DataError(f"loss is {loss.item()} at step {run.step}; lower the learning rate")
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), config.gradient_norm_max)
        run.optimizer.step()
        run.step += 1
        # Early averages forget the first weights faster, as in Adam's own correction.
        decay = min(config.ema_decay, (1 + run.step) / (10 + run.step))
        with torch.no_grad():
            for average, current in zip(run.averaged.parameters(), run.model.parameters(), strict=True):
                average.lerp_(current, 1.0 - decay)
        total["train_loss"] += loss.item()
        total["train_cosine"] += cosine.item()
        tick(run.epoch, batch + 1, batches)
    return {name: value / batches for name, value in total.items()}


def measure_epoch(run: Run, data: VectorSet, split: Split) -> dict[str, float]:
    """Cosine of the averaged weights on validation articles and on the selection domain."""
    run.averaged.eval()
    device, values = next(run.averaged.parameters()).device, {}
    for name, starts in (("validation", split.validation), ("selection", split.selection)):
        if len(starts):
            cosines = window_cosines(lambda x: run.averaged(x.to(device)), data, starts)
            values[f"{name}_cosine"] = float(cosines.mean())
    return values | {"score": float(np.mean(list(values.values())))}


def after_epoch(run: Run, row: dict[str, float]) -> None:
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
