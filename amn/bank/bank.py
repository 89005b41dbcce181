"""Opening a bank of either kind, ready to search."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amn.bank.exact import ReferenceBank
from amn.bank.files import CELLS, CODES, BankManifest, Multiplicity, check_files, map_arrays, read_manifest
from amn.bank.index import CellBank
from amn.bank.index_arrays import ArraySearch
from amn.bank.index_cells import Cells, require_faiss
from amn.bank.neighbours import Bank
from amn.bank.search import LoopSearch
from amn.errors import CheckpointError
from amn.kernel import bindings as kernel


def load_bank(folder: Path) -> Bank:
    """Loads a bank, or maps it when it is large, and checks it.

    Raises:
        CheckpointError: A file is missing or altered, the vectors are not (N, 768) and unit-norm, or
            the bank needs a package that is not installed.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    stored, multiplicity = map_arrays(folder, manifest)
    if manifest.index is not None:
        return open_index(folder, manifest, stored, multiplicity)
    vectors = stored.astype(np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.allclose(norms, 1, atol=1e-3):
        raise CheckpointError(f"reference bank {folder} holds vectors that are not unit-norm")
    return ReferenceBank(np.ascontiguousarray(vectors / norms), multiplicity, manifest)


def open_index(
    folder: Path, manifest: BankManifest, stored: NDArray[np.floating], multiplicity: Multiplicity
) -> CellBank:
    """A bank whose files hold, ready to search. The vectors stay in the file: all workers share them.

    Raises:
        CheckpointError: faiss is not installed, or the index is of another version.
    """
    faiss = require_faiss(f"reference bank {folder}")
    if stored.dtype != np.float32:
        raise CheckpointError(f"reference bank {folder}: an indexed bank holds float32, not {stored.dtype}")
    if isinstance(stored, np.memmap) and hasattr(mmap, "MADV_WILLNEED"):
        stored._mmap.madvise(mmap.MADV_WILLNEED)  # type: ignore[attr-defined]
    try:
        with np.load(folder / CELLS, allow_pickle=False) as arrays:
            cells = Cells(**arrays)
        codes, vectors = faiss.read_index(str(folder / CODES)), np.asarray(stored)
        search = (LoopSearch if kernel.READY else ArraySearch)(faiss, cells, codes, vectors)
        return CellBank(vectors, multiplicity, manifest, search)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"reference bank {folder}: its index cannot be read: {error}; build it again"
        ) from error
