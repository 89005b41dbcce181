"""The target: a folder of Parquet parts, one a row group, and the manifest of what is done.

While a run is under way, the manifest grows by a line a part in a file beside it: a data set may have so many
parts that writing all of them anew with each would take longer than the predictions.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from amn.errors import FileRefused
from amn.files import write_whole

FORMAT = 1
COUNTS = ("rows", "failed", "escalated")
#: Bytes of a row beside its vector, about.
_BESIDE_BYTES = 120
_ROOM = 1.05


@dataclass(slots=True)
class TargetManifest:
    """The subject of a run, and the row groups that are done.

    Attributes:
        about: The inputs and options that must not change between the runs of one target.
        models: The ids of model, bank, policy and fallback of the first answers.
        done: By number of the row group: rows, failed, escalated, and the models where they are others.
    """

    about: dict[str, Any]
    models: dict[str, str] = field(default_factory=dict)
    done: dict[int, dict[str, Any]] = field(default_factory=dict)

    def sets(self) -> Iterator[dict[str, str]]:
        """Yield the sets of models whose answers there are."""
        yield self.models
        yield from (row["models"] for row in self.done.values() if "models" in row)

    def answers_of(self) -> list[dict[str, Any]]:
        """Return each set that answered, with the number of its parts and rows."""
        found: list[dict[str, Any]] = []
        for row in self.done.values():
            models = row.get("models", self.models)
            same = next((one for one in found if one["models"] == models), None)
            if same is None:
                found.append(same := {"models": models, "parts": 0, "rows": 0})
            same["parts"] += 1
            same["rows"] += row["rows"]
        return found

    def note(self, line: Mapping[str, Any]) -> None:
        """Take a line that `line` made."""
        self.models |= line["models"]
        self.done[int(line["number"])] = dict(line["row"])

    def line(self, number: int) -> dict[str, Any]:
        """Return what one more part changed: the part, and the ids that are known by now."""
        return {"number": number, "row": self.done[number], "models": self.models}

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        done = {str(number): row for number, row in sorted(self.done.items())}
        return {"format": FORMAT, "about": self.about, "models": self.models, "done": done}


class Target:
    """A folder of parts; a context manager that one run at a time is in.

    Args:
        folder: Its path.
        shard: As "i/n", or "" for all.
        beside_bytes: Size of a file that is made of the parts, on the same disk.
    """

    def __init__(self, folder: Path, shard: str = "", beside_bytes: int = 0) -> None:
        self.folder, self._beside_bytes = folder, beside_bytes
        suffix = f"-{shard.replace('/', '-of-')}" if shard else ""
        # Readers of a folder leave out what begins so.
        self._manifest_path = folder / f"_manifest{suffix}.json"
        self._lock_path = folder / f".lock{suffix}"
        self._lock = -1

    def __enter__(self) -> Target:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while not self._locked():
                continue
        except OSError as error:
            raise FileRefused(f"{self.folder} cannot be written: {error.strerror or error}") from error
        return self

    def _locked(self) -> bool:
        """Take the lock; False when the run that had it removed its file meanwhile."""
        self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            why = f"another run writes to {self.folder}; wait for it, or name another folder"
            raise FileRefused(why) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._lock), self._lock_path.stat()):
                return True
        os.close(self._lock)
        return False

    def __exit__(self, *_: object) -> None:
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock)

    def part(self, number: int) -> Path:
        """Return the path of the part of a row group."""
        return self.folder / f"part-{number:06}.parquet"

    def _aside(self, number: int) -> Path:
        return self.folder / f".part-{number:06}.tmp"

    def load(self) -> TargetManifest | None:
        """Return the manifest of an earlier run; None if there is none.

        Raises:
            FileRefused: It is damaged, or of another version.
        """
        return _loaded(self._manifest_path) if self._manifest_path.exists() else None

    def taken_up(self, about: dict[str, Any]) -> TargetManifest:
        """Return the manifest of an earlier run of the same, with the parts that are whole; else a new one.

        Raises:
            FileRefused: The earlier run was of another input or with other options.
        """
        earlier = self.load()
        if earlier is None:
            return TargetManifest(about)
        if changed := differences(earlier.about, about):
            raise FileRefused(
                f"{self.folder} holds a run of something else: {'; '.join(changed[:3])}. Name another "
                "folder, or begin anew with --restart"
            )
        earlier.done = {n: row for n, row in earlier.done.items() if row["rows"] == self.rows_in(n)}
        return earlier

    def others(self) -> dict[Path, TargetManifest]:
        """Return the manifests of other shards, or of a run without shards beside one of a shard.

        Raises:
            FileRefused: One is damaged, or of another version.
        """
        found = {}
        for path in sorted(self.folder.glob("_manifest*.json")):
            if path != self._manifest_path:
                with contextlib.suppress(FileNotFoundError):  # a shard that begins anew at this moment
                    found[path] = _loaded(path)
        return found

    def rows_in(self, number: int) -> int:
        """Return how many rows the part of a row group holds; 0 for one that is missing or damaged."""
        try:
            return int(parquet.read_metadata(self.part(number)).num_rows)
        except (OSError, pa.ArrowException):
            return 0

    def save(self, manifest: TargetManifest) -> None:
        """Write the manifest at once, and with it the lines that were beside it."""
        write_whole(self._manifest_path, json.dumps(manifest.to_json(), indent=1) + "\n")
        _lines_path(self._manifest_path).unlink(missing_ok=True)

    def add(self, manifest: TargetManifest, number: int) -> None:
        """Write that one more part is done, beside the manifest.

        Raises:
            FileRefused: The disk is full.
        """
        with self._refusing(), _lines_path(self._manifest_path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(manifest.line(number)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def clear(self, numbers: Iterable[int] | None = None) -> None:
        """Remove the manifest and the parts of an earlier run; those of some row groups, or all."""
        if numbers is None:
            paths = [*self.folder.glob("part-*.parquet"), *self.folder.glob(".part-*")]
        else:
            paths = [path for number in numbers for path in (self.part(number), self._aside(number))]
        for path in (*paths, _lines_path(self._manifest_path), self._manifest_path):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def writing(
        self, number: int, schema: pa.Schema, repeated: Sequence[str] = ("served_by", "shed")
    ) -> Iterator[parquet.ParquetWriter]:
        """Open a part; it appears when the block ends well.

        Args:
            repeated: Columns of few different values, which are stored once each.

        Raises:
            FileRefused: The disk is full.
        """
        aside = self._aside(number)
        try:
            with self._refusing():
                flat = [field.name for field in schema if not pa.types.is_nested(field.type)]
                with parquet.ParquetWriter(
                    aside,
                    schema,
                    compression="none",
                    use_dictionary=list(repeated),
                    write_statistics=flat,  # the least and the most number of all predictions help no reader
                ) as writer:
                    yield writer
                with aside.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(aside, self.part(number))
        finally:
            aside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            raise FileRefused(
                f"{self.folder} cannot be written: {why}; what is done stays, and the same command goes on"
            ) from error

    def check_room(self, rows: int, number_bytes: int = 4) -> None:
        """Refuse a disk that cannot hold so many rows of a vector each, and what is made of all parts."""
        need = int(rows * (768 * number_bytes + _BESIDE_BYTES) * _ROOM) + self._beside_bytes
        free = shutil.disk_usage(self.folder).free
        if free < need:
            raise FileRefused(
                f"{self.folder} has {free / 1e6:,.0f} MB free, and {rows:,} rows need about "
                f"{need / 1e6:,.0f} MB"
            )


def _lines_path(path: Path) -> Path:
    return path.with_suffix(".jsonl")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines beside a manifest; the last one may be cut short, by a kill or a full disk."""
    text = path.read_text("utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def _loaded(path: Path) -> TargetManifest:
    try:
        stored = json.loads(path.read_text("utf-8"))
        if stored["format"] != FORMAT:
            raise ValueError(f"format {stored['format']}")
        done = {int(number): dict(row) for number, row in stored["done"].items()}
        found = TargetManifest(dict(stored["about"]), dict(stored["models"]), done)
        for line in _lines(_lines_path(path)):
            found.note(line)
        if not all(isinstance(row[count], int) for row in found.done.values() for count in COUNTS):
            raise ValueError("a count is no number")
        if not all(isinstance(row.get("models", {}), dict) for row in found.done.values()):
            raise ValueError("models are no names")
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileRefused(f"{path} cannot be read ({error!r}); --restart begins anew") from error


def differences(stored: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """Return what differs between two plain values, by its place."""
    found = []
    for name in sorted({*stored, *now}):
        at, a, b = f"{path}{name}", stored.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{at}.")
        elif isinstance(a, list) and isinstance(b, list) and all(isinstance(x, dict) for x in a + b):
            if len(a) != len(b):
                found.append(f"{at} were {len(a)} and are {len(b)}")
            for i, (x, y) in enumerate(zip(a, b, strict=False)):
                found += differences(x, y, f"{at}[{i}].")
        elif a != b:
            found.append(f"{at} was {a!r} and is {b!r}")
    return found
