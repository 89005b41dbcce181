"""Figures of any set of checkpoints, and of the two baselines, on the same windows.

All models see the same windows, and all differences are paired by window and resampled by
article. A split is judged only with windows that the manifest's training side excludes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amn.config import PARAMETERS
from amn.data.dataset import Split, split_by_article, training_vectors
from amn.data.vectors import Index, Vectors, VectorSet, chunks
from amn.errors import DataError
from amn.evaluation import latency, metrics, report
from amn.evaluation.metrics import BASELINES, Cosines, Predict, cosine, estimate
from amn.files import write_whole
from amn.model import checkpoint
from amn.model.folded import fold

BANK_SIZE = 4_096
TRAIN_SAMPLE = 5_000
HITS = (1, 5, 10)
SLICES = ("train", "validation", "test", "unseen")
#: Slices on which retrieval, order and copying are looked at, and on how many windows.
JUDGED = ("test", "unseen")
PROBE_WINDOWS = 1_000


def evaluate(
    loaded: list[checkpoint.Checkpoint],
    data: VectorSet,
    *,
    every: int = 1,
    with_latency: bool = True,
) -> dict[str, Any]:
    """All figures of all checkpoints and baselines as one JSON-ready dict.

    Args:
        loaded: verified checkpoints; the first is the one others are compared with.
        data: the vectors to judge on; the split is made anew and is always the same.
        every: judge every n-th window only, for a quick look.
        with_latency: also measure latency by batch size.
    """
    split = split_by_article(data)
    sides = {name: starts[::every] for name, starts in slices_of(split).items()}
    bank = bank_vectors(data)
    measured = {name: measure(p, data, sides, bank) for name, p in named_predictors(loaded).items()}
    cosines = {name: own.cosines for name, own in measured.items()}
    models: dict[str, Any] = {}
    for name, own in measured.items():
        models[name] = compare(name, cosines, data, sides) | {"hits": own.hits, "probes": own.probes}
    describe(models, loaded, with_latency)
    return {
        "data": {"source": data.source, "sha256": data.sha256()},
        "slices": {side: describe_slice(data, starts) for side, starts in sides.items()},
        "bank_vectors": len(bank),
        "threads": torch.get_num_threads(),
        "reference": next(iter(measured)),
        "models": models,
    }


def write_evaluation(result: dict[str, Any], out: Path) -> None:
    """Write the figures as `evaluation.json` and the page as `evaluation.html`."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "evaluation.json", json.dumps(result, indent=2) + "\n")
    write_whole(out / "evaluation.html", report.page(result))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one model's predictions gave, before it is compared with others."""

    cosines: dict[str, Cosines]
    hits: dict[str, dict[str, float]]
    probes: dict[str, dict[str, Any]]


def measure(predict: Predict, data: VectorSet, sides: dict[str, Index], bank: Vectors) -> Measured:
    """Predict every slice once, and keep the figures instead of the vectors."""
    found = Measured(cosines={}, hits={}, probes={})
    for side, starts in sides.items():
        predicted, true = metrics.predict_windows(predict, data, starts), metrics.truth(data, starts)
        found.cosines[side] = cosine(predicted, true)
        if side in JUDGED:
            found.hits[side] = hits(predicted, true, bank)
            step = -(-len(starts) // PROBE_WINDOWS)
            found.probes[side] = probes(predict, data, starts[::step])
    return found


def common_encoder(loaded: list[checkpoint.Checkpoint]) -> str:
    """The encoder of all checkpoints.

    Raises:
        DataError: They were trained on vectors of several.
    """
    encoders = {item.manifest.model_id: item.manifest.encoder_id for item in loaded}
    if len(set(encoders.values())) > 1:
        raise DataError(f"the models are of several encoders ({encoders}); judge those of one together")
    return loaded[0].manifest.encoder_id


def slices_of(split: Split) -> dict[str, Index]:
    """Training windows are sampled: they only show how much a model has memorised."""
    sides = split.sides()
    step = max(1, len(sides["train"]) // TRAIN_SAMPLE)
    sides["train"] = sides["train"][::step]
    return {name: sides[name] for name in SLICES if name in sides}


def bank_vectors(data: VectorSet) -> Vectors:
    """An even sample of the training side to hide the true vector among."""
    vectors, _ = training_vectors(data)
    return vectors[:: max(1, len(vectors) // BANK_SIZE)][:BANK_SIZE]


def named_predictors(loaded: list[checkpoint.Checkpoint]) -> dict[str, Predict]:
    """Folded checkpoints by model id, then the baselines.

    Raises:
        DataError: one checkpoint was given twice.
    """
    named: dict[str, Predict] = {}
    for item in loaded:
        if item.manifest.model_id in named:
            raise DataError(f"{item.manifest.model_id} was given twice; name each once")
        named[item.manifest.model_id] = fold(item.model)
    return named | BASELINES


def describe_slice(data: VectorSet, starts: Index) -> dict[str, Any]:
    """n, articles and coherence of a slice."""
    return {
        "n": len(starts),
        "articles": len(np.unique(data.article[starts])),
        "coherence": round(metrics.coherence(data, starts), 4),
    }


def compare(
    name: str,
    cosines: dict[str, dict[str, Cosines]],
    data: VectorSet,
    sides: dict[str, Index],
) -> dict[str, Any]:
    """Cosines of a model, and its paired gains over the baselines and the first model."""
    reference = next(iter(cosines))
    result: dict[str, Any] = {"cosine": {}, "gains": {}}
    for side, starts in sides.items():
        articles = data.article[starts]
        own = cosines[name][side]
        result["cosine"][side] = estimate(own, articles).to_dict()
        result["gains"][side] = {
            other: estimate(own - cosines[other][side], articles).to_dict()
            for other in dict.fromkeys([*BASELINES, reference])
            if other != name
        }
    delta = result["cosine"]["unseen"]["mean"] - result["cosine"]["test"]["mean"]
    result["ood_delta"] = round(delta, 5)
    gain = cosines[name]["test"] - cosines["context_mean"]["test"]
    result["domains"] = by_domain(gain, data, sides["test"])
    return result


def by_domain(gain: Cosines, data: VectorSet, starts: Index) -> dict[str, Any]:
    """Gain over the context mean on the test articles of each domain."""
    domains = data.article_domain[data.article[starts]]
    return {
        str(domain): estimate(gain[domains == domain], data.article[starts][domains == domain]).to_dict()
        for domain in np.unique(domains)
    }


def probes(predict: Predict, data: VectorSet, starts: Index) -> dict[str, Any]:
    """What changes when the context does: order, single positions; and copying.

    A position is left out by putting the mean of the other four in its place, since the
    networks take exactly five vectors.
    """
    order = torch.tensor([2, 0, 4, 1, 3])
    edits: dict[str, metrics.Edit] = {"shuffled": lambda x: x[:, order], "reversed": lambda x: x.flip(1)}
    predicted, true = metrics.predict_windows(predict, data, starts), metrics.truth(data, starts)
    own, to_last = cosine(predicted, true), cosine(predicted, data.rows(starts + 4))

    def change(edit: metrics.Edit) -> float:
        edited = metrics.predict_windows(predict, data, starts, edit)
        return round(float((cosine(edited, true) - own).mean()), 5)

    return {
        "n": len(starts),
        **{name: change(edit) for name, edit in edits.items()},
        "without_position": [change(without(i)) for i in range(5)],
        "nearer_to_last_share": round(float((to_last > own).mean()), 4),
        "cosine_to_last": round(float(to_last.mean()), 4),
    }


def without(position: int) -> metrics.Edit:
    """Replace one context vector by the normalised mean of the others."""

    def edit(x: Tensor) -> Tensor:
        others = (x.sum(1) - x[:, position]) / 4.0
        changed = x.clone()
        changed[:, position] = torch.nn.functional.normalize(others, dim=-1)
        return changed

    return edit


def hits(predicted: Vectors, true: Vectors, bank: Vectors) -> dict[str, float]:
    """How often the true next vector is among the k nearest, hidden in two crowds.

    The crowds are the bank, and the true next vectors of all other windows of the slice:
    an unseen domain is easily told from the bank alone.
    """
    own = cosine(predicted, true)
    bank = np.concatenate([bank, true])
    better: NDArray[np.int64] = np.concatenate(
        [(predicted[rows] @ bank.T > own[rows, None] + 1e-6).sum(1) for rows in chunks(len(predicted), 1024)]
    )
    return {f"hit@{k}": round(float((better < k).mean()), 4) for k in HITS}


def describe(models: dict[str, Any], loaded: list[checkpoint.Checkpoint], with_latency: bool) -> None:
    """Add layout, size, recipe and latency to the figures of each checkpoint."""
    for item in loaded:
        manifest = item.manifest
        entry = models[manifest.model_id]
        entry["layout"] = manifest.layout
        entry["parameters"] = PARAMETERS[manifest.layout]
        entry["weights_bytes"] = (item.path / checkpoint.WEIGHTS_FILE).stat().st_size
        entry["preset"] = manifest.training.get("preset", "unknown")
        if with_latency:
            entry["latency"] = latency.measure(item.model)
    for name in BASELINES:
        models[name]["layout"], models[name]["parameters"] = "baseline", 0
