"""Building a bank: checked, merged, indexed when it is large, and atomic."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
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
from amn.bank.merge import ALL_PAIRS_MAX, merge_duplicates
from amn.bank.settings import Guard, IndexSettings
from amn.data.arrays import Rows, writing_rows
from amn.data.vectors import check_numbers, chunks
from amn.errors import DataError
from amn.files import making_folder
from amn.manifest import PIECE_BYTES, files_sha256

#: Exact search of more vectors costs more than the cells do.
EXACT_MAX = 16_384
_WORK = "unit.npy"

#: Step, rows done of it, rows of it in all.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BankSettings:
    """The settings of building a bank.

    Attributes:
        encoder_id: Recipe of the vectors.    source: Where they come from.
        epsilon: Cosine above which two vectors count as one.
        indexed: Whether it gets an index; None: when it has more than `EXACT_MAX` vectors.
        index: Parameters of the index; with `queries`, its widths are measured and not these.
        queries: Shape (n, 768): predictions for texts that the bank does not hold.
        guard: Thresholds that the widths are to hold for.
    """

    encoder_id: str
    source: str
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
    unit = _checked(work / _WORK, vectors, on_progress)
    count = len(unit)
    indexed = count > EXACT_MAX if settings.indexed is None else settings.indexed
    filing = None
    if indexed or count > ALL_PAIRS_MAX:
        filing = Filing(
            unit, settings.index.fitted(count), lambda done: on_progress("finding cells", done, count)
        )
    compared = 0

    def on_compared(rows: int) -> None:
        nonlocal compared
        compared += rows
        on_progress("merging near-duplicates", min(compared // (1 if filing is None else 2), count), count)

    kept, multiplicity = merge_duplicates(unit, settings.epsilon, filing, on_compared)
    if len(kept) < 2:
        raise DataError(
            f"all {count} vectors are one within a cosine of {settings.epsilon}; a bank needs two"
        )
    if indexed and filing is not None:
        # In the order of the cells, what is compared lies side by side in the file.
        order = np.argsort(filing.cells[kept, 0], kind="stable")
        kept, multiplicity = kept[order], multiplicity[order]
    _write(work / VECTORS, unit, kept, np.float32 if indexed else np.float16, on_progress)
    np.save(work / MULTIPLICITY, multiplicity, allow_pickle=False)
    written = None
    if indexed and filing is not None:
        filing.take(kept)
        written = write_index(work, filing, lambda done: on_progress("coding", done, len(kept)))
    (work / _WORK).unlink()
    manifest = _manifest(work, settings, (len(kept), count - len(kept)), written)
    if written is not None and settings.queries is not None:
        manifest = _tuned(work, manifest, settings.queries, settings.guard, on_progress)
    write_manifest(work, manifest)
    return manifest


def _tuned(
    work: Path,
    manifest: BankManifest,
    queries: NDArray[np.float32],
    guard: Guard,
    on_progress: OnProgress,
) -> BankManifest:
    """The manifest with the widths that were measured to be enough."""
    bank = open_index(work, manifest, *map_arrays(work, manifest))
    count = len(queries)
    widths, found = tune(bank, queries, guard, lambda done: on_progress("measuring agreement", done, count))
    index = asdict(widths)
    bank_id = _bank_id(manifest.sha256, manifest.files, index)
    return replace(manifest, bank_id=bank_id, index=index, agreement=found.stored())


def _checked(path: Path, vectors: Rows, on_progress: OnProgress) -> NDArray[np.float32]:
    """Unit vectors, in a file of their own: half a million of them need not fit into memory."""
    with writing_rows(path, len(vectors), 768, np.float32) as unit:
        for rows in chunks(len(vectors)):
            part = np.asarray(vectors[rows], dtype=np.float32)
            norms = np.linalg.norm(part, axis=1)
            bad = np.flatnonzero(~(np.abs(norms - 1) <= 1e-3))
            if len(bad):
                raise DataError(
                    f"vector {rows.start + bad[0]} has norm {norms[bad[0]]:.6g} ({len(bad)} such near it); "
                    "expected unit norm within 1e-3"
                )
            unit.put(rows, part / norms[:, None])
            on_progress("checking", rows.stop, len(vectors))
    return open_memmap(path, mode="r")  # nobody else knows this file


def _write(
    path: Path, unit: NDArray[np.float32], kept: NDArray[np.intp], dtype: type, on_progress: OnProgress
) -> None:
    with writing_rows(path, len(kept), 768, dtype) as stored:
        for rows in chunks(len(kept)):
            stored.put(rows, unit[kept[rows]])
            on_progress("writing", rows.stop, len(kept))


def _manifest(
    work: Path, settings: BankSettings, counts: tuple[int, int], index: dict[str, Any] | None
) -> BankManifest:
    pieces: list[str] = []
    digest = files_sha256([work / VECTORS], pieces.append)
    names = [MULTIPLICITY] if index is None else [MULTIPLICITY, CELLS, CODES]
    files = {name: files_sha256([work / name]) for name in names}
    return BankManifest(
        bank_id=_bank_id(digest, files, index),
        count=counts[0],
        merged=counts[1],
        epsilon=settings.epsilon,
        encoder_id=settings.encoder_id,
        source=settings.source,
        sha256=digest,
        pieces=tuple(pieces) if (work / VECTORS).stat().st_size > 4 * PIECE_BYTES else (),
        files=files,
        index=index,
    )


def _bank_id(digest: str, files: dict[str, str], index: dict[str, Any] | None) -> str:
    """Returns a hash of all that an answer depends on: without an index, of the vectors alone."""
    if index is not None:
        parts = (digest, files[CELLS], files[CODES], json.dumps(index, sort_keys=True))
        digest = hashlib.sha256(" ".join(parts).encode()).hexdigest()
    return f"bank@{digest[:12]}"
