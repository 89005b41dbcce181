"""The fit of the OOD score: references, cells and thresholds, and the figures of their worth.

References are context means of the training side, drawn at random. Thresholds are the 90th and 99th
percentile of the validation side: one context in a hundred in distribution is taken for OOD. The
test side and the unseen domain only judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amn.config import CONTEXT_LENGTH
from amn.data.dataset import UNSEEN_DOMAIN, split_by_article
from amn.data.vectors import Index, VectorSet, chunks
from amn.errors import DataError
from amn.files import making_folder
from amn.manifest import write_manifest
from amn.slices import CELLS_MAX, FILES, SlicesManifest, Vectors, files_hash, unit_mean

INSIDE_QUANTILE, OUTSIDE_QUANTILE = 0.90, 0.99
_KMEANS_ROUNDS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """Size of the artifact, and the domain that is kept out and judged as OOD."""

    references: int = 1024
    neighbours: int = 10
    cells: int = 64
    seed: int = 0
    unseen_domain: str = UNSEEN_DOMAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The arrays and thresholds of an artifact, and their measured worth."""

    references: Vectors
    centroids: Vectors
    inside_max: float
    outside_min: float
    measured: dict[str, float]


def fit(data: VectorSet, settings: FitSettings) -> Fit:
    """References, cells and thresholds from the training and validation sides.

    Raises:
        DataError: The data is too small for what was asked.
    """
    split = split_by_article(data, unseen_domain=settings.unseen_domain)
    means = means_of(data, split.train)
    if not settings.neighbours <= settings.references <= len(means) or not 1 <= settings.cells <= CELLS_MAX:
        raise DataError(
            f"{settings.references} references, {settings.neighbours} neighbours and {settings.cells} cells "
            f"do not fit {len(means)} contexts; use neighbours <= references <= contexts, at most {CELLS_MAX}"
        )
    draw = np.random.default_rng(settings.seed)
    references = stored(means[draw.permutation(len(means))[: settings.references]])
    centroids = stored(centres(means, settings.cells, draw))
    validation, test, unseen = (
        distances(means_of(data, starts), references, settings.neighbours)
        for starts in (split.validation, split.test, split.unseen)
    )
    low, high = (float(np.quantile(validation, q)) for q in (INSIDE_QUANTILE, OUTSIDE_QUANTILE))
    measured = {
        "auc": area(test, unseen),
        "true_ood": (unseen > high).mean(),
        "false_ood": (test > high).mean(),
        "ood_taken_for_id": (unseen <= low).mean(),
        "unsure_id": ((test > low) & (test <= high)).mean(),
        "unsure_ood": ((unseen > low) & (unseen <= high)).mean(),
    }
    return Fit(
        references=references,
        centroids=centroids,
        inside_max=low,
        outside_min=high,
        measured={name: round(float(value), 5) for name, value in measured.items()},
    )


def write(found: Fit, out: Path, settings: FitSettings, data: VectorSet) -> SlicesManifest:
    """Writes the artifact, atomically: the folder appears when it is whole."""
    with making_folder(out) as work:
        for name, array in zip(FILES, (found.references, found.centroids), strict=True):
            np.save(work / name, array.astype(np.float16), allow_pickle=False)
        digest = files_hash(work)
        manifest = SlicesManifest(
            slices_id=f"slices@{digest[:12]}",
            neighbours=settings.neighbours,
            inside_max=round(found.inside_max, 6),
            outside_min=round(found.outside_min, 6),
            encoder_id=data.encoder_id,
            source=data.source,
            sha256=digest,
            measured=found.measured,
        )
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


def area(inside: Vectors, outside: Vectors) -> float:
    """Chance that a context out of distribution scores higher than one in it (ties count half)."""
    ordered = np.sort(inside)
    below = np.searchsorted(ordered, outside, side="left") + np.searchsorted(ordered, outside, side="right")
    return float(below.mean() / 2 / len(inside))


def stored(rows: Vectors) -> Vectors:
    """Rows as they are read back from the artifact."""
    return rows.astype(np.float16).astype(np.float32)
