"""In distribution or out of it: a score of a context's input, and the thresholds that go with it.

The score is one minus the mean of the k best cosines between the context's mean vector and reference
means of the training side; it looks at the input alone, never at a prediction or a truth. Below the
lower threshold a context is in distribution, above the upper one it is out of it, and between them
it is neither: a slice made by a score is only worth comparing when it is clean. docs/drift-slices.md
has the figures of the alternatives.

An artifact is a folder: `references.npy` (N, 768) and `centroids.npy` (C, 768), float16 unit vectors,
and `manifest.json` with the thresholds, the figures of the fit and the files' hash.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amn.data.vectors import unit
from amn.errors import CheckpointError
from amn.manifest import check_sha256, files_sha256, read_manifest

FORMAT = 1
CELLS_MAX = 256
INSIDE, UNSURE, OUTSIDE = "id", "unsure", "ood"
FILES = ("references.npy", "centroids.npy")

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicesManifest:
    """The manifest of the slices.

    Attributes:
        slices_id: `slices@` and the first 12 hex digits of `sha256`.
        neighbours: k.
        inside_max: Highest score of a context in distribution.
        outside_min: Lowest score of one out of it.
        encoder_id: Recipe of the vectors.    source: Origin of the vectors.
        sha256: Hash of the two arrays' files, in the order of `FILES`.
        measured: Figures of the fit, by name.
    """

    slices_id: str
    neighbours: int
    inside_max: float
    outside_min: float
    encoder_id: str
    source: str
    sha256: str
    measured: dict[str, float] = field(default_factory=dict)
    format: int = FORMAT


class OodScore(NamedTuple):
    """A context's distance from the training side, and its nearest cell.

    Attributes:
        score: 0 (among the references) to 2; typically .2 to .8.
        cell: Nearest centroid.
    """

    score: float
    cell: int


class Slicer:
    """Scores contexts.

    Attributes:
        manifest: The artifact's own description.
    """

    def __init__(self, references: Vectors, centroids: Vectors, manifest: SlicesManifest) -> None:
        self.manifest = manifest
        self._references, self._centroids = references, centroids

    @property
    def cells(self) -> int:
        """The number of centroids."""
        return len(self._centroids)

    def measure(self, context: NDArray[np.floating]) -> OodScore:
        """Score and cell of one context (5, 768).

        One at a time, so that a context's score does not depend on what else is in its batch.
        """
        mean = unit_mean(context)
        score = nearest_distance(self._references @ mean, self.manifest.neighbours)
        return OodScore(score, int((self._centroids @ mean).argmax()))

    def slice_of(self, score: float) -> str:
        """The slice of a score: `INSIDE`, `UNSURE` or `OUTSIDE`."""
        if score <= self.manifest.inside_max:
            return INSIDE
        return OUTSIDE if score > self.manifest.outside_min else UNSURE


def unit_mean(context: NDArray[np.floating]) -> Vectors:
    """(..., 5, 768) -> (..., 768), the mean's direction; zero where the mean is zero."""
    return unit(context.astype(np.float32).mean(axis=-2))


def nearest_distance(cosines: Vectors, neighbours: int) -> float:
    """One minus the mean of the `neighbours` largest of (N,) cosines."""
    best = np.partition(cosines, len(cosines) - neighbours)[-neighbours:]
    return 1.0 - float(best.astype(np.float64).mean())


def load_slices(folder: Path, encoder_id: str) -> Slicer:
    """Loads the artifact and checks it.

    Args:
        encoder_id: The encoder of the contexts that are to be scored.

    Raises:
        CheckpointError: A file is missing, the hash differs, what is in it does not fit, or it was fitted
            on vectors of another encoder.
    """
    again = "fit them again"
    manifest = read_manifest(folder, SlicesManifest, artifact="slices", remedy=again)
    if manifest.encoder_id != encoder_id:
        raise CheckpointError(
            f"slices {folder} were fitted on vectors of encoder {manifest.encoder_id!r}, and contexts of "
            f"{encoder_id!r} are to be scored; fit them on vectors of that encoder (`amn slices`), or remove "
            f"{folder}: requests that name no domain are in slice 'unknown' then"
        )
    try:
        check_sha256(f"slices {folder}", files_hash(folder), manifest.sha256, again)
        rows = [np.load(folder / name, allow_pickle=False).astype(np.float32) for name in FILES]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"slices {folder} cannot be read: {error}; {again}") from error
    references, centroids = rows
    fits = manifest.format == FORMAT and manifest.inside_max <= manifest.outside_min
    fits = fits and 1 <= manifest.neighbours <= len(references) and 1 <= len(centroids) <= CELLS_MAX
    if not fits or references.shape[1:] != (768,) or centroids.shape[1:] != (768,):
        raise CheckpointError(
            f"slices {folder}: format {manifest.format}, references {references.shape}, centroids "
            f"{centroids.shape}, k {manifest.neighbours}, thresholds {manifest.inside_max} and "
            f"{manifest.outside_min} do not fit together; {again}"
        )
    return Slicer(references, centroids, manifest)


def files_hash(folder: Path) -> str:
    """SHA-256 of the arrays' files."""
    return files_sha256(folder / name for name in FILES)
