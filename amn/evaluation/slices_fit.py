"""The fit of the OOD score: references, cells and thresholds, and the figures of their worth.

References are context means of the training side, drawn at random. Thresholds are the 90th and 99th
percentile of the validation side: one context in a hundred in distribution is taken for OOD. The
test side and the unseen domain only judge.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from amn.config import CONTEXT_LENGTH, UNSEEN_DOMAIN
from amn.data.dataset import split_by_article
from amn.data.vectors import Index, VectorSet, chunks
from amn.errors import DataError
from amn.files import making_folder
from amn.manifest import write_manifest
from amn.slices import CELLS_MAX, FILES, SlicesManifest, Vectors, files_hash, unit_mean

INSIDE_QUANTILE, OUTSIDE_QUANTILE = 0.90, 0.99
_KMEANS_ROUNDS = 15


class Fit(NamedTuple):
    """The arrays of an artifact, and its manifest without the hash of their files."""

    references: Vectors
    centroids: Vectors
    manifest: SlicesManifest


def fit(
    data: VectorSet,
    *,
    references: int = 1024,
    neighbours: int = 10,
    cells: int = 64,
    seed: int = 0,
    unseen_domain: str = UNSEEN_DOMAIN,
) -> Fit:
    """References, cells and thresholds from the training and validation sides."""
    split = split_by_article(data, unseen_domain=unseen_domain)
    means = means_of(data, split.train)
    if not neighbours <= references <= len(means) or not 1 <= cells <= CELLS_MAX:
        raise DataError(
            f"{references} references, {neighbours} neighbours and {cells} cells do not fit {len(means)} "
            f"contexts; use neighbours <= references <= contexts, at most {CELLS_MAX} cells"
        )
    draw = np.random.default_rng(seed)
    chosen = stored(means[draw.permutation(len(means))[:references]])
    centroids = stored(centres(means, cells, draw))
    validation, test, unseen = (
        distances(means_of(data, starts), chosen, neighbours)
        for starts in (split.validation, split.test, split.unseen)
    )
    low, high = (float(np.quantile(validation, q)) for q in (INSIDE_QUANTILE, OUTSIDE_QUANTILE))
    manifest = SlicesManifest(
        slices_id="",
        neighbours=neighbours,
        inside_max=round(low, 6),
        outside_min=round(high, 6),
        encoder_id=data.encoder_id,
        source=data.source,
        sha256="",
        measured=separation(test, unseen, low, high),
    )
    return Fit(chosen, centroids, manifest)


def write(found: Fit, out: Path) -> SlicesManifest:
    """Writes the artifact, atomically: the folder appears when it is whole."""
    with making_folder(out) as work:
        for name, array in zip(FILES, (found.references, found.centroids), strict=True):
            np.save(work / name, array.astype(np.float16), allow_pickle=False)
        digest = files_hash(work)
        manifest = dataclasses.replace(found.manifest, slices_id=f"slices@{digest[:12]}", sha256=digest)
        write_manifest(work, manifest)
    return manifest


def means_of(data: VectorSet, starts: Index) -> Vectors:
    """Context means of windows, (N, 768)."""
    offsets = np.arange(CONTEXT_LENGTH)
    found = [unit_mean(data.rows(starts[at][:, None] + offsets)) for at in chunks(len(starts), 4096)]
    return np.concatenate(found) if found else np.empty((0, 768), dtype=np.float32)


def distances(means: Vectors, references: Vectors, neighbours: int) -> Vectors:
    """The score of many contexts at once, (N,)."""
    found = np.empty(len(means), dtype=np.float32)
    for at in chunks(len(means), 1024):
        cosines = means[at] @ references.T
        found[at] = 1 - np.partition(cosines, -neighbours, axis=1)[:, -neighbours:].mean(axis=1)
    return found


def centres(means: Vectors, cells: int, draw: np.random.Generator) -> Vectors:
    """Spherical k-means, (cells, 768); a cell that nothing is nearest to stays where it was."""
    found = means[draw.permutation(len(means))[:cells]].copy()
    for _ in range(_KMEANS_ROUNDS):
        nearest = np.concatenate([(means[at] @ found.T).argmax(axis=1) for at in chunks(len(means), 4096)])
        moved = np.zeros_like(found)
        np.add.at(moved, nearest, means)
        norms = np.linalg.norm(moved, axis=1, keepdims=True)
        found = np.where(norms > 0, moved / np.maximum(norms, 1e-12), found)
    return found


def separation(inside: Vectors, outside: Vectors, low: float, high: float) -> dict[str, float]:
    """Figures of how well scores tell contexts out of distribution from those in it."""
    measured = {
        "auc": area(inside, outside),
        "true_ood": (outside > high).mean(),
        "false_ood": (inside > high).mean(),
        "ood_taken_for_id": (outside <= low).mean(),
        "unsure_id": ((inside > low) & (inside <= high)).mean(),
        "unsure_ood": ((outside > low) & (outside <= high)).mean(),
    }
    return {name: round(float(value), 5) for name, value in measured.items()}


def area(inside: Vectors, outside: Vectors) -> float:
    """Chance that a context out of distribution scores higher than one in it (ties count half)."""
    ordered = np.sort(inside)
    below = np.searchsorted(ordered, outside, side="left") + np.searchsorted(ordered, outside, side="right")
    return float(below.mean() / 2 / len(inside))


def stored(rows: Vectors) -> Vectors:
    """Rows as they are read back from the artifact."""
    return rows.astype(np.float16).astype(np.float32)
