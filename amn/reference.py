"""The reference bank: vectors that a prediction is compared with, as a hashed artifact.

A bank is a folder: `vectors.npy` (N, 768) float16 unit vectors, `multiplicity.npy` (N,) int32 (how
many source vectors each one stands for) and `manifest.json`. Near-duplicates (cosine above
`epsilon`) are merged when the bank is built, so "best minus second best" compares two different
texts; that is the margin method `distinct`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from amn.errors import CheckpointError, DataError

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BankManifest:
    """What a bank says of itself.

    Attributes:
        bank_id: `bank@` and the first 12 hex digits of the vectors' hash.
        count: Vectors after merging.    merged: Source vectors merged into another.
        epsilon: Cosine above which two vectors count as one.
        encoder_id: Recipe of the vectors.    source: Where they came from.
        sha256: Of `vectors.npy`.
    """

    bank_id: str
    count: int
    merged: int
    epsilon: float
    encoder_id: str
    source: str
    sha256: str
    format: int = FORMAT


class Neighbours(NamedTuple):
    """What an index says of a batch of predictions.

    Attributes:
        best, second: Shape (B,), float32: the two best cosines.
        ids: Shape (B,): row of the best reference.
        certain: Shape (B,), bool: whether the two cosines are known to be the exact ones.
    """

    best: NDArray[np.float32]
    second: NDArray[np.float32]
    ids: NDArray[np.intp]
    certain: NDArray[np.bool_]


class ReferenceBank:
    """Exact nearest neighbours among the bank's vectors.

    Attributes:
        manifest: The bank's own description.
        vectors: Shape (N, 768), float32, unit norm.
    """

    def __init__(self, vectors: NDArray[np.float32], manifest: BankManifest) -> None:
        self.manifest = manifest
        self.vectors = vectors
        self._rows = torch.from_numpy(vectors)  # (N, 768)
        self._columns = np.ascontiguousarray(vectors.T)  # (768, N)

    def __len__(self) -> int:
        return int(self.vectors.shape[0])

    @property
    def bank_id(self) -> str:
        """Stamped on every answer."""
        return self.manifest.bank_id

    def top2(self, predictions: torch.Tensor) -> Neighbours:
        """The two best cosines of each prediction.

        Args:
            predictions: Shape (B, 768), float32, unit norm.

        Returns:
            Exact neighbours.
        """
        # NumPy's product is the faster one, but for two or three rows, where it loses threefold.
        if len(predictions) in (2, 3):
            scores = F.linear(predictions, self._rows).numpy()  # (B, N)
        else:
            scores = predictions.numpy() @ self._columns
        rows = np.arange(scores.shape[0])
        # Two passes of argmax cost a sixth of a partial sort at N = 2,048.
        index = scores.argmax(axis=1)
        best = scores[rows, index]
        scores[rows, index] = -2.0
        return Neighbours(best, scores.max(axis=1), index, np.ones(len(index), dtype=np.bool_))


def load_bank(folder: Path) -> ReferenceBank:
    """Loads a bank and checks it.

    Raises:
        CheckpointError: A file is missing, the hash differs, or the vectors are not (N, 768) and
            unit-norm.
    """
    try:
        manifest = BankManifest(**json.loads((folder / "manifest.json").read_text("utf-8")))
        raw = (folder / "vectors.npy").read_bytes()
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"reference bank {folder} cannot be read: {error}; build it again") from error
    digest = hashlib.sha256(raw).hexdigest()
    if digest != manifest.sha256:
        raise CheckpointError(
            f"reference bank {folder}: vectors.npy has sha256 {digest[:12]}, the manifest says "
            f"{manifest.sha256[:12]}; restore the file or build the bank again"
        )
    stored = np.load(folder / "vectors.npy", allow_pickle=False)
    if stored.ndim != 2 or stored.shape[1] != 768 or len(stored) < 2:
        raise CheckpointError(f"reference bank {folder} has shape {stored.shape}; expected (N >= 2, 768)")
    vectors = stored.astype(np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.allclose(norms, 1, atol=1e-3):
        raise CheckpointError(f"reference bank {folder} holds vectors that are not unit-norm")
    return ReferenceBank(np.ascontiguousarray(vectors / norms), manifest)


def build_bank(
    vectors: NDArray[np.floating],
    folder: Path,
    *,
    encoder_id: str,
    source: str,
    epsilon: float = 0.98,
    on_progress: Callable[[int], None] = lambda done: None,
) -> BankManifest:
    """Builds a bank from unit vectors, atomically: the folder appears when it is whole.

    Merging is greedy in the given order: a vector within `epsilon` of an earlier kept one only
    adds to that one's multiplicity.

    Args:
        vectors: Shape (N, 768), unit norm within 1e-3.

    Raises:
        DataError: Wrong shape, not finite or not unit-norm, or `folder` exists already.
    """
    unit = _checked(vectors)
    if folder.exists():
        raise DataError(f"{folder} exists already; name a new folder")
    kept, multiplicity = merge_duplicates(unit, epsilon, on_progress)
    stored = unit[kept].astype(np.float16)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".bank-", dir=folder.parent))
    try:
        np.save(work / "vectors.npy", stored, allow_pickle=False)
        np.save(work / "multiplicity.npy", multiplicity, allow_pickle=False)
        digest = hashlib.sha256((work / "vectors.npy").read_bytes()).hexdigest()
        manifest = BankManifest(
            bank_id=f"bank@{digest[:12]}",
            count=len(kept),
            merged=len(unit) - len(kept),
            epsilon=epsilon,
            encoder_id=encoder_id,
            source=source,
            sha256=digest,
        )
        (work / "manifest.json").write_text(json.dumps(asdict(manifest), indent=2) + "\n", "utf-8")
        work.chmod(0o755)
        os.rename(work, folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return manifest


def merge_duplicates(
    unit: NDArray[np.float32], epsilon: float, on_progress: Callable[[int], None] = lambda done: None
) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Indices of the vectors kept, and how many source vectors each stands for."""
    count = len(unit)
    kept = np.empty(count, dtype=np.intp)
    rows = np.empty_like(unit)  # the kept vectors, contiguous
    multiplicity = np.zeros(count, dtype=np.int32)
    n = 0
    for i in range(count):
        scores = rows[:n] @ unit[i]
        if n and scores.max() > epsilon:
            multiplicity[int(scores.argmax())] += 1
        else:
            kept[n], rows[n], multiplicity[n] = i, unit[i], 1
            n += 1
        on_progress(i + 1)
    return kept[:n], multiplicity[:n]


def _checked(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    if vectors.ndim != 2 or vectors.shape[1] != 768 or len(vectors) < 2:
        raise DataError(f"vectors have shape {vectors.shape}; expected (N >= 2, 768)")
    unit = vectors.astype(np.float32)
    norms = np.linalg.norm(unit, axis=1)
    bad = np.flatnonzero(~(np.abs(norms - 1) <= 1e-3))
    if len(bad):
        raise DataError(
            f"vector {bad[0]} has norm {norms[bad[0]]:.6g} ({len(bad)} such); expected unit norm within 1e-3"
        )
    return np.ascontiguousarray(unit / norms[:, None])
