"""Figures of any set of checkpoints, and of the two baselines, on the same windows, as one record.

All differences are paired by window and resampled by article. A split is judged only with windows
that the manifest's training side excludes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from amn.config import PARAMETERS
from amn.data.dataset import rows_of, split_by_article
from amn.data.vectors import Index, Vectors, VectorSet, chunks
from amn.errors import DataError
from amn.evaluation import latency, metrics
from amn.evaluation.metrics import BASELINES, Cosines, Predict, cosine, estimate
from amn.manifest import check_one_encoder
from amn.model.checkpoint import WEIGHTS_FILE, Checkpoint
from amn.model.folded import fold

BANK_SIZE = 4_096
TRAIN_SAMPLE = 5_000
HITS = (1, 5, 10)
SLICES = ("train", "validation", "test", "unseen")
#: Slices on which retrieval, order and copying are measured, and the number of windows of the latter two.
PROBED = ("test", "unseen")
PROBE_WINDOWS = 1_000

Record = dict[str, Any]


def evaluate(
    loaded: list[Checkpoint], data: VectorSet, *, every: int = 1, with_latency: bool = True
) -> Record:
    """All figures of all checkpoints and baselines as one JSON-ready record.

    Args:
        loaded: Verified checkpoints; the first is the one that others are compared with.
        data: The vectors to judge on; the split is made anew and is always the same.
        every: Judge every n-th window only, for a quick look.
        with_latency: Also measure latency by batch size.
    """
    predictors: dict[str, Predict] = {item.manifest.model_id: fold(item.model) for item in loaded}
    if len(predictors) < len(loaded):
        raise DataError(f"a checkpoint was given twice ({', '.join(predictors)}); name each once")
    check_one_encoder({item.manifest.model_id: item.manifest for item in loaded} | {data.source: data})
    unseen = common_unseen(loaded)
    split = split_by_article(data, unseen_domain=unseen)
    sides = split.sides()
    sides["train"] = sides["train"][:: max(1, len(sides["train"]) // TRAIN_SAMPLE)]
    sides = {name: sides[name][::every] for name in (*SLICES, *split.left_out) if name in sides}
    rows = rows_of(split.train)
    bank = data.rows(rows[:: max(1, len(rows) // BANK_SIZE)][:BANK_SIZE])
    measured = {name: measure(one, data, sides, bank) for name, one in (predictors | BASELINES).items()}
    cosines = {name: found for name, (found, _) in measured.items()}
    models = {
        name: entry | compare(name, cosines, data, sides) | {"layout": "baseline", "parameters": 0}
        for name, (_, entry) in measured.items()
    }
    for item in loaded:
        models[item.manifest.model_id] |= describe(item, with_latency)
    return {
        "data": {"source": data.source, "sha256": data.sha256()},
        "slices": {side: describe_slice(data, starts) for side, starts in sides.items()},
        "bank_vectors": len(bank),
        "threads": torch.get_num_threads(),
        "reference": next(iter(models)),
        "models": models,
    }


def common_encoder(loaded: list[Checkpoint]) -> str:
    """The encoder of all checkpoints; refuses those of several."""
    check_one_encoder({item.manifest.model_id: item.manifest for item in loaded})
    return loaded[0].manifest.encoder_id


def common_unseen(loaded: list[Checkpoint]) -> str:
    """The domain that no checkpoint was trained on; refuses those of several."""
    unseen = {item.manifest.model_id: item.manifest.unseen_domain for item in loaded}
    if len(set(unseen.values())) > 1:
        raise DataError(f"the models were trained without different domains ({unseen}); judge them apart")
    return loaded[0].manifest.unseen_domain


def describe_slice(data: VectorSet, starts: Index) -> Record:
    """The number of windows and articles of a slice, and its coherence."""
    articles = len(np.unique(data.article[starts]))
    coherence = round(metrics.coherence(data, starts), 4)
    return {"n": len(starts), "articles": articles, "coherence": coherence}


def describe(item: Checkpoint, with_latency: bool) -> Record:
    """Layout, size, recipe and latency of a checkpoint."""
    entry: Record = {
        "layout": item.manifest.layout,
        "parameters": PARAMETERS[item.manifest.layout],
        "weights_bytes": (item.path / WEIGHTS_FILE).stat().st_size,
        "preset": item.manifest.training.get("preset", "unknown"),
    }
    return entry | ({"latency": latency.measure(item.model)} if with_latency else {})


def measure(
    predict: Predict, data: VectorSet, sides: dict[str, Index], bank: Vectors
) -> tuple[dict[str, Cosines], Record]:
    """Predicts every slice once; keeps the cosines, hits and probes instead of the vectors."""
    cosines: dict[str, Cosines] = {}
    entry: Record = {"hits": {}, "probes": {}}
    for side, starts in sides.items():
        predicted, true = metrics.predict_windows(predict, data, starts), data.next_vectors(starts)
        cosines[side] = cosine(predicted, true)
        if side in PROBED:
            entry["hits"][side] = hits(predicted, true, bank)
            entry["probes"][side] = probes(predict, data, starts[:: -(-len(starts) // PROBE_WINDOWS)])
    return cosines, entry


def compare(
    name: str, cosines: dict[str, dict[str, Cosines]], data: VectorSet, sides: dict[str, Index]
) -> Record:
    """Cosines of a model, its paired gains over the baselines and the first model, and those by domain."""
    others = [one for one in dict.fromkeys([*BASELINES, next(iter(cosines))]) if one != name]
    own, articles = cosines[name], {side: data.article[starts] for side, starts in sides.items()}
    means = {side: estimate(own[side], articles[side]).to_dict() for side in sides}
    gains = {
        side: {one: estimate(own[side] - cosines[one][side], articles[side]).to_dict() for one in others}
        for side in sides
    }
    gain, domain = own["test"] - cosines["context_mean"]["test"], data.article_domain[articles["test"]]
    return {
        "cosine": means,
        "gains": gains,
        "ood_delta": round(means["unseen"]["mean"] - means["test"]["mean"], 5),
        "domains": {
            str(one): estimate(gain[domain == one], articles["test"][domain == one]).to_dict()
            for one in np.unique(domain)
        },
    }


def probes(predict: Predict, data: VectorSet, starts: Index) -> Record:
    """Changes of the cosine with the order and the positions of the context; and copying."""
    order = torch.tensor([2, 0, 4, 1, 3])
    predicted, true = metrics.predict_windows(predict, data, starts), data.next_vectors(starts)
    own, to_last = cosine(predicted, true), cosine(predicted, data.rows(starts + 4))

    def change(edit: metrics.Edit) -> float:
        edited = metrics.predict_windows(predict, data, starts, edit)
        return round(float((cosine(edited, true) - own).mean()), 5)

    return {
        "n": len(starts),
        "shuffled": change(lambda x: x[:, order]),
        "reversed": change(lambda x: x.flip(1)),
        "without_position": [change(without(i)) for i in range(5)],
        "nearer_to_last_share": round(float((to_last > own).mean()), 4),
        "cosine_to_last": round(float(to_last.mean()), 4),
    }


def without(position: int) -> metrics.Edit:
    """Replaces one context vector by the normalised mean of the others: networks take exactly five."""

    def edit(x: Tensor) -> Tensor:
        changed = x.clone()
        changed[:, position] = torch.nn.functional.normalize(x.sum(1) - x[:, position], dim=-1)
        return changed

    return edit


def hits(predicted: Vectors, true: Vectors, bank: Vectors) -> dict[str, float]:
    """Share of windows whose true next vector is among the k nearest, hidden in two crowds.

    The crowds are the bank, and the true next vectors of all other windows of the slice:
    an unseen domain is easily told from the bank alone.
    """
    own, crowd = cosine(predicted, true), np.concatenate([bank, true])
    better = np.concatenate(
        [(predicted[rows] @ crowd.T > own[rows, None] + 1e-6).sum(1) for rows in chunks(len(own), 1024)]
    )
    return {f"hit@{k}": round(float((better < k).mean()), 4) for k in HITS}
