"""The files of a reference bank, and what of them is checked when it is opened.

vectors.npy       (N, 768) unit vectors: float16, or float32 where they are searched in place
multiplicity.npy  (N,) int32: how many source vectors each one stands for
manifest.json     `BankManifest`: counts, hashes, and how the index was made
cells.npz, codes.faiss   the index of a large bank (amn/bank/cells.py)

A start hashes everything but a large `vectors.npy`; of that one it hashes a random sample of the pieces,
another one each time. `amn bank check` hashes all of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn import manifest as manifests
from amn.errors import CheckpointError
from amn.manifest import PIECE_BYTES, check_file, check_sha256

FORMAT = 1
VECTORS, MULTIPLICITY = "vectors.npy", "multiplicity.npy"
CELLS, CODES = "cells.npz", "codes.faiss"
#: Pieces of a large file that a start looks at; four cost 50 ms where the file is in memory.
_SAMPLED = 4
_REMEDY = "restore the file or build the bank again"

Multiplicity = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class BankManifest:
    """The manifest of a bank.

    Attributes:
        bank_id: `bank@` and 12 hex digits of the hash of the vectors, and of the index and its widths.
        count: Vectors after merging.    merged: Source vectors merged into another.
        epsilon: Cosine above which two vectors count as one.
        encoder_id: Recipe of the vectors.    source: Origin of the vectors.
        encoder_sha256: Hash of the files of the encoder; "" where nobody knows it.
        sha256: Hash of `vectors.npy`.
        pieces: SHA-256 of each 16 MiB of a large `vectors.npy`; else empty.
        files: SHA-256 of every other file but this one; empty in banks made before there was one.
        index: Parameters of the index (`amn.bank.settings.IndexSettings`), or None for an exact search.
        agreement: Decisions of the index beside an exact search when it was built
            (`amn.bank.agreement.Agreement`), or None where nobody gave queries.
    """

    bank_id: str
    count: int
    merged: int
    epsilon: float
    encoder_id: str
    source: str
    sha256: str
    format: int = FORMAT
    pieces: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    index: dict[str, Any] | None = None
    agreement: dict[str, Any] | None = None
    encoder_sha256: str = ""


def read_manifest(folder: Path) -> BankManifest:
    """Reads the manifest.

    Raises:
        CheckpointError: There is none, or it is of another version.
    """
    return manifests.read_manifest(folder, BankManifest, artifact="reference bank", remedy=_REMEDY)


def write_manifest(folder: Path, manifest: BankManifest) -> None:
    """Writes the manifest; the fields that say nothing are left out."""
    content = {name: value for name, value in asdict(manifest).items() if value not in ([], {}, None, "")}
    manifests.write_manifest(folder, content, indent=1)


def check_files(folder: Path, manifest: BankManifest, *, whole: bool = False) -> None:
    """Compares the files with the manifest's hashes.

    Args:
        whole: All of a large `vectors.npy` rather than a random sample of its pieces.

    Raises:
        CheckpointError: One is missing, cut or altered.
    """
    for name, expected in manifest.files.items():
        check_file(folder / name, expected, _REMEDY)
    if whole or not manifest.pieces:
        check_file(folder / VECTORS, manifest.sha256, _REMEDY)
        return
    # Without a seed: other workers, and other starts, look at other pieces. The first one holds the
    # header of the array, the last one its end.
    count = len(manifest.pieces)
    drawn = np.random.default_rng().choice(count, size=min(_SAMPLED, count), replace=False)
    try:
        with (folder / VECTORS).open("rb") as file:
            for number in sorted({0, count - 1, *drawn.tolist()}):
                file.seek(number * PIECE_BYTES)
                digest = hashlib.sha256(file.read(PIECE_BYTES)).hexdigest()
                check_sha256(f"{file.name}, piece {number},", digest, manifest.pieces[number], _REMEDY)
    except OSError as error:
        raise CheckpointError(f"reference bank {folder} cannot be read: {error}; {_REMEDY}") from error


def map_arrays(folder: Path, manifest: BankManifest) -> tuple[NDArray[np.floating], Multiplicity]:
    """Vectors, mapped, and multiplicities.

    Raises:
        CheckpointError: They are cut, or not what the manifest says.
    """
    try:
        stored = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
        multiplicity = np.load(folder / MULTIPLICITY, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"reference bank {folder} cannot be read: {error}; {_REMEDY}") from error
    count = manifest.count
    if count < 2 or stored.shape != (count, 768) or multiplicity.shape != (count,):
        raise CheckpointError(
            f"reference bank {folder} has vectors {stored.shape} and multiplicities {multiplicity.shape}; "
            f"expected ({count} >= 2, 768) and ({count},); {_REMEDY}"
        )
    return stored, multiplicity
