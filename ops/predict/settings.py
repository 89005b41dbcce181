"""The settings of a batch prediction: plain values, which a command and a job can hold."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amn.errors import FileRefused
from ops.predict.models import DEFAULT, ON_CHANGE
from producer.messages import BULK_PRIORITY, LANES, PRIORITIES, Priority

#: At most so many rows of a block have a fallback's answer: the limit of all traffic, less its reserve.
SHARE_DEFAULT, SHARE_MAX = 0.195, 0.2
#: Rows at the begin of a document have this code: no model answers them.
SHORT_DOCUMENT = "short_document"
_SHARD = re.compile(r"([1-9][0-9]{0,4})/([1-9][0-9]{0,4})")


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictSettings:
    """The settings of one batch prediction.

    Attributes:
        sources: Files, folders and globs.
        out: A folder for Parquet parts, or an .npy file for one file of contexts.
        encoder: The encoder of the vectors, where the files do not say it; "" for the client's.
        array: The array of vectors in an .npz that has several.
        vector, document, position, domain: Names of columns; "" for `vector` means the first known one.
        carry: Columns that are copied to the target.
        lane: Of the rows that a fallback answers.
        priority: Of the requests.
        normalize: Scale vectors to unit norm instead of failing rows of another norm.
        share: Of the rows of a block that AMN answers, at most so many have a fallback's answer; 0 for none.
        shard: "i/n" takes the i-th of n shares of the row groups; "" for all.
        failures_max: Failed rows that stop the run: a number, or a share with "%"; "" for no limit. Rows at
            the begin of a document, which no model answers, are not counted.
        stall_s: So many seconds without an answer stop the run; 0 to wait for ever.
        on_change: What is done when other models answer: "name" or "stop"; "" names them while the run is
            under way, and stops where an earlier one is taken up.
        report_truth: Report a sample of the rows, with the truth, to the shadow evaluation.
        restart: Begin anew.
        force: Replace an .npy file.

    Raises:
        FileRefused: A value is not what it must be.
    """

    sources: Sequence[str]
    out: str
    encoder: str = ""
    array: str = ""
    vector: str = ""
    document: str = "doc_id"
    position: str = "position"
    domain: str = "domain"
    carry: Sequence[str] = ()
    lane: str = LANES[0]
    priority: Priority = BULK_PRIORITY
    normalize: bool = False
    share: float = SHARE_DEFAULT
    shard: str = ""
    failures_max: str = ""
    stall_s: float = 0.0
    on_change: str = DEFAULT
    report_truth: bool = False
    restart: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if not self.sources:
            raise FileRefused("no source is named; give files, folders or globs")
        if not 0 <= self.share <= SHARE_MAX:
            raise FileRefused(f"share is {self.share}; use 0 to {SHARE_MAX}, the limit of all traffic")
        if self.lane not in LANES or self.priority not in PRIORITIES:
            raise FileRefused(f"lane {self.lane!r} or priority {self.priority!r} is unknown")
        if not 0 <= self.stall_s < math.inf:
            raise FileRefused(f"the longest stall is {self.stall_s} s; use 0 or more, or wait")
        if self.on_change not in (DEFAULT, *ON_CHANGE):
            raise FileRefused(f"on-change is {self.on_change!r}; use {' or '.join(ON_CHANGE)}")
        self.shard_numbers()
        self.failures_limit()

    @property
    def to_array(self) -> bool:
        """True if the target is one .npy file."""
        return Path(self.out).suffix == ".npy"

    def shard_numbers(self) -> tuple[int, int]:
        """Return (i, n), counted from 0; (0, 1) for all."""
        if not self.shard:
            return 0, 1
        found = _SHARD.fullmatch(self.shard)
        if found is None or int(found[1]) > int(found[2]):
            raise FileRefused(f"shard is {self.shard!r}; use i/n with i from 1 to n, such as 2/8")
        return int(found[1]) - 1, int(found[2])

    def failures_limit(self) -> float | None:
        """Return a number of rows, a share below 1, or None; all rows are no limit."""
        text = self.failures_max
        try:
            value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1) if text else None
        except ValueError:
            value = -1.0
        if value is not None and not (
            0 <= value <= 1 if text.endswith("%") else value >= 0 and value % 1 == 0
        ):
            raise FileRefused(f"failures-max is {text!r}; use a number of rows, or a share such as 2%")
        return None if text.endswith("%") and value == 1 else value


def faults(codes: Mapping[str, int]) -> Counter[str]:
    """Return failed rows by code, without those that no model answers."""
    return Counter({code: count for code, count in codes.items() if code != SHORT_DOCUMENT})


def check_apart(sources: Sequence[str], paths: Sequence[Path], target: str) -> None:
    """Refuse a target that lies in a source, is one, or holds one."""
    out = Path(os.path.realpath(target))
    for path in paths:
        if any(out == one or out in one.parents for one in (path, Path(os.path.realpath(path)))):
            raise FileRefused(f"the target {target} holds the source {path}; name another one")
    for source in sources:
        folder = Path(os.path.realpath(source.partition("**")[0]))
        if folder.is_dir() and folder in out.parents:
            raise FileRefused(f"the target {target} lies in the source {source}; name one beside it")


def check_ours(folder: Path) -> None:
    """Refuse a target that holds something else than a run of ours; an empty folder will do."""
    if folder.exists() and (not folder.is_dir() or not _ours(folder)):
        raise FileRefused(f"{folder} exists and holds no run of ours; name a new or an empty folder")


def _ours(folder: Path) -> bool:
    names = [path.name for path in folder.iterdir()]
    return not names or any(name.startswith(("_manifest", ".lock")) for name in names)
