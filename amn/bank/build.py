"""Building a bank: checked, merged, indexed when it is large, and atomic."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from amn.bank.agreement import tune
from amn.bank.bank import open_index
from amn.bank.cells import Filing, write_index
from amn.bank.files import (
    CELLS,
    CODES,
    MULTIPLICITY,
    VECTORS,
    BankManifest,
    map_arrays,
    write_manifest,
)
from amn.bank.merge import merge_duplicates
from amn.bank.settings import Guard, IndexSettings
from amn.data.arrays import Rows, writing_rows
from amn.data.vectors import check_numbers, check_rows, chunks
from amn.errors import DataError
from amn.files import making_folder
from amn.manifest import PIECE_BYTES, files_sha256

#: Exact search of more vectors costs more than the cells do, and so does a comparison of all pairs.
EXACT_MAX = 16_384
_WORK = "unit.npy"

#: Name of a step, rows done, its rows in all.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BankSettings:
    """The settings of building a bank.

    Attributes:
        encoder_id: Recipe of the vectors.    source: Origin of the vectors.
        encoder_sha256: Hash of the files of the encoder; "" where nobody knows it.
        epsilon: Cosine above which two vectors count as one.
        indexed: True for an index, False for none; None: more than `EXACT_MAX` vectors get one.
        index: Parameters of the index; with `queries`, its widths are measured and not these.
        queries: Shape (n, 768): predictions for texts that the bank does not hold.
        guard: Thresholds that the widths are to hold for.
    """

    encoder_id: str
    source: str
    encoder_sha256: str = ""
    epsilon: float = 0.98
    indexed: bool | None = None
    index: IndexSettings = field(default_factory=IndexSettings)
    queries: NDArray[np.float32] | None = field(default=None, repr=False)
    guard: Guard = field(default_factory=Guard)


def build_bank(
    vectors: Rows,
    folder: Path,
    settings: BankSettings,
    on_progress: OnProgress = lambda step, done, total: None,
) -> BankManifest:
    """Builds a bank from unit vectors, atomically: the folder appears when it is whole.

    Args:
        vectors: Shape (N, 768), unit norm within 1e-3; may be in a file.

    Raises:
        DataError: Wrong shape or type, not finite or not unit-norm, or `folder` exists already.
        CheckpointError: An index is wanted, and faiss is not installed.
    """
    if vectors.ndim != 2 or vectors.shape[1] != 768 or len(vectors) < 2:
        raise DataError(f"vectors have shape {vectors.shape}; expected (N >= 2, 768)")
    check_numbers("the bank's vectors", vectors)
    with making_folder(folder) as work:
        return _build_in(work, vectors, settings, on_progress)


def _build_in(work: Path, vectors: Rows, settings: BankSettings, on_progress: OnProgress) -> BankManifest:
    unit, count = _normalised(work / _WORK, vectors, on_progress), len(vectors)
    indexed = count > EXACT_MAX if settings.indexed is None else settings.indexed
    filing = cells = index = None
    if indexed or count > EXACT_MAX:
        filing = Filing(unit, settings.index.fitted(count), _step(on_progress, "finding cells", count))
        cells = filing.cells
    progress = _step(on_progress, "merging near-duplicates", count)
    kept, multiplicity = merge_duplicates(unit, settings.epsilon, cells, progress)
    if len(kept) < 2:
        raise DataError(
            f"all {count} vectors are one within a cosine of {settings.epsilon}; a bank needs two"
        )
    if indexed and filing is not None:
        # In the order of the cells, what is compared lies side by side in the file.
        order = np.argsort(filing.cells[kept, 0], kind="stable")
        kept, multiplicity = kept[order], multiplicity[order]
        filing.take(kept)
        index = write_index(work, filing, _step(on_progress, "coding", len(kept)))
    with writing_rows(work / VECTORS, len(kept), 768, np.float32 if indexed else np.float16) as stored:
        for rows in chunks(len(kept)):
            stored.put(rows, unit[kept[rows]])
            on_progress("writing", rows.stop, len(kept))
    np.save(work / MULTIPLICITY, multiplicity, allow_pickle=False)
    (work / _WORK).unlink()
    manifest = _manifest(work, settings, (len(kept), count - len(kept)), index)
    if indexed and settings.queries is not None:
        manifest = _tuned(work, manifest, settings.queries, settings.guard, on_progress)
    manifest = replace(manifest, bank_id=_bank_id(manifest))
    write_manifest(work, manifest)
    return manifest


def _step(on_progress: OnProgress, step: str, total: int) -> Callable[[int], None]:
    return lambda done: on_progress(step, done, total)


def _manifest(
    work: Path, settings: BankSettings, counts: tuple[int, int], index: dict[str, Any] | None
) -> BankManifest:
    pieces: list[str] = []
    names = [MULTIPLICITY] if index is None else [MULTIPLICITY, CELLS, CODES]
    return BankManifest(
        bank_id="",
        count=counts[0],
        merged=counts[1],
        epsilon=settings.epsilon,
        encoder_id=settings.encoder_id,
        encoder_sha256=settings.encoder_sha256,
        source=settings.source,
        sha256=files_sha256([work / VECTORS], pieces.append),
        pieces=pieces if (work / VECTORS).stat().st_size > 4 * PIECE_BYTES else [],
        files={name: files_sha256([work / name]) for name in names},
        index=index,
    )


def _normalised(path: Path, vectors: Rows, on_progress: OnProgress) -> NDArray[np.float32]:
    """Checked unit vectors, in a file of their own: half a million of them need not fit into memory."""
    with writing_rows(path, len(vectors), 768, np.float32) as unit:
        for rows in chunks(len(vectors)):
            part = np.asarray(vectors[rows], dtype=np.float32)
            check_rows("the bank's vectors", part, rows.start)
            unit.put(rows, part / np.linalg.norm(part, axis=1, keepdims=True))
            on_progress("checking", rows.stop, len(vectors))
    return open_memmap(path, mode="r")  # nobody else knows this file


def _tuned(
    work: Path, manifest: BankManifest, queries: NDArray[np.float32], guard: Guard, on_progress: OnProgress
) -> BankManifest:
    """The manifest with the widths that were measured to be enough."""
    bank = open_index(work, manifest, *map_arrays(work, manifest))
    progress = _step(on_progress, "measuring agreement", len(bank))
    widths, found = tune(bank, queries, guard, progress)
    return replace(manifest, index=widths.to_dict(), agreement=found.stored())


def _bank_id(manifest: BankManifest) -> str:
    """Returns a hash of all that an answer depends on: without an index, of the vectors alone."""
    digest, index, files = manifest.sha256, manifest.index, manifest.files
    if index is not None:
        parts = (digest, files[CELLS], files[CODES], json.dumps(index, sort_keys=True))
        digest = hashlib.sha256(" ".join(parts).encode()).hexdigest()
    return f"bank@{digest[:12]}"
