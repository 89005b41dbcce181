"""Several sets of vectors as one, whose first keeps its sides: the others join its training side only."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.config import VECTOR_DIM
from amn.data.arrays import writing_rows
from amn.data.vectors import DRAWN, LEFT_OUT, TRAIN, VectorSet, chunks, side_faults
from amn.errors import DataError
from amn.files import making_folder
from amn.manifest import check_one_encoder


def join(first: VectorSet, others: Sequence[VectorSet], left_out: Collection[str], out: Path) -> None:
    """Write the sets as a folder of .npy, with the side of each article and the hash of each set.

    Args:
        first: Its articles are split as without the others.
        others: Their articles are of the training side.
        left_out: Domains of the others that nothing is trained on.

    Raises:
        DataError: The sets are of several encoders, or a domain cannot be left out, since no article that
            joins is of it, the first set has articles of it, or its name is that of a side.
        FileRefused: The folder exists already, or cannot be written.
    """
    sets = [first, *others]
    check_one_encoder({f"{number} {one.source}": one for number, one in enumerate(sets, 1)})
    domains = np.concatenate([one.article_domain for one in sets])
    sides = np.where(np.isin(domains, sorted(left_out)), LEFT_OUT, TRAIN)
    sides[: len(first.article_domain)] = first.article_side if len(first.article_side) else DRAWN
    if missing := sorted(set(left_out) - set(domains[sides == LEFT_OUT].tolist())):
        raise DataError(
            f"no article that joins is of domain {missing[0]!r}; there are {sorted(set(domains))}"
        )
    for fault in side_faults(domains, sides):
        raise DataError(f"{out}: {fault}")
    hashes = [one.sha256() for one in sets]
    if len({*hashes}) < len(sets):
        raise DataError(f"{out}: one of the sets is given twice, and would be trained on twice; give it once")
    joined = [{"source": one.source, "sha256": sha256} for one, sha256 in zip(sets, hashes, strict=True)]
    about = {"joined": joined, "left_out": sorted(left_out)}
    with making_folder(out) as folder:
        _write(folder, sets, article_domain=domains, article_side=sides)
        (folder / "manifest.json").write_text(json.dumps(about, indent=1) + "\n")


def _write(folder: Path, sets: Sequence[VectorSet], **arrays: NDArray[Any]) -> None:
    before = np.cumsum([0, *(len(one.article_domain) for one in sets)])
    numbers = (one.article.astype(np.int64) + n for one, n in zip(sets, before, strict=False))
    arrays["article"] = np.concatenate(list(numbers))
    arrays["article_name"] = np.concatenate([one.article_name for one in sets])
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "encoder.txt").write_text(sets[0].encoder_id + "\n")
    (folder / "encoder_sha256.txt").write_text(min(one.encoder_sha256 for one in sets) + "\n")
    count = sum(len(one.vectors) for one in sets)
    with writing_rows(folder / "vectors.npy", count, VECTOR_DIM, np.float16) as file:
        at = 0
        for one in sets:
            for rows in chunks(len(one.vectors)):
                file.put(slice(at + rows.start, at + rows.stop), one.vectors[rows])
            at += len(one.vectors)
