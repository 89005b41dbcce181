"""One run over a data set: row groups in order, each a part that appears whole and stays."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.errors import FileRefused
from ops.errors import RunStopped
from ops.predict.dataset import DataSet
from ops.predict.engines import Answers, Engine, Waits, chosen
from ops.predict.parts import Target, TargetManifest, differences
from ops.predict.rows import part_rows, part_schema
from ops.predict.sources import RowGroup, identity, state_of
from ops.predict.windows import SHORT_DOCUMENT, RowBlock
from producer.errors import InvalidRequest
from producer.protocol.checks import are_unit, checked_context

#: Blocks under way at once, before and after their rows are chosen.
_AHEAD = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRunSettings:
    """The settings of a run.

    Attributes:
        share: Of the rows of a block that a fallback answers at most; 0 for none.
        normalize: Scale vectors to unit norm instead of failing rows of another norm.
        failures_max: Failed rows that stop the run, as a number or a share of all rows; None for no limit.
        shard: (i, n): every n-th row group, from the i-th on.
        restart: Begin anew.
    """

    share: float = 0.195
    normalize: bool = False
    failures_max: float | None = None
    shard: tuple[int, int] = (0, 1)
    restart: bool = False


@dataclass(slots=True, kw_only=True)
class Progress:
    """The progress of a run.

    Attributes:
        rows, done, failed, escalated: Rows of this run, and of them ended, failed, answered by a fallback.
        skipped: Rows that an earlier run had done.
        codes: Failed rows by code.
    """

    rows: int = 0
    done: int = 0
    failed: int = 0
    escalated: int = 0
    skipped: int = 0
    codes: Counter[str] = field(default_factory=Counter)

    def count(self, row: dict[str, Any]) -> None:
        """Add a row group that is done."""
        self.done += row["rows"]
        self.failed += row["failed"]
        self.escalated += row["escalated"]
        self.codes.update(row.get("codes", {}))


class FileRun:
    """A run into one target."""

    def __init__(self, data: DataSet, target: Target, engine: Engine, settings: FileRunSettings) -> None:
        self.data, self._target, self._engine, self._settings = data, target, engine, settings
        first, step = settings.shard
        self.groups = [group for group in data.groups if group.number % step == first]
        self.progress = Progress(rows=sum(group.rows for group in self.groups))
        self._manifest = TargetManifest(self._about())

    @property
    def parts(self) -> list[Path]:
        """The parts of this run that are done, in order."""
        return [self._target.part(number) for number in sorted(self._manifest.done)]

    @property
    def models(self) -> dict[str, str]:
        """The ids of model, bank, policy and fallback, once there are answers."""
        return self._manifest.models

    def begin(self) -> None:
        """Take up what an earlier run did.

        Raises:
            FileRefused: It was of another input or with other options, or there is no room.
        """
        self._check_shards()
        if self._settings.restart:
            self._target.clear(
                [group.number for group in self.groups] if self._settings.shard[1] > 1 else None
            )
        earlier = self._target.load()
        if earlier is not None:
            if changed := differences(earlier.about, self._manifest.about):
                raise FileRefused(
                    f"{self._target.folder} holds a run of something else: {'; '.join(changed[:3])}. Name "
                    "another folder, or begin anew with --restart"
                )
            self._manifest = earlier
            rows = {group.number: group.rows for group in self.groups}
            earlier.done = {
                number: row
                for number, row in earlier.done.items()
                if row["rows"] == rows.get(number) == self._target.rows_in(number)
            }
        for row in self._manifest.done.values():
            self.progress.count(row)
        self._note_models(self._engine.models)
        self.progress.skipped = self.progress.done
        self._target.check_room(self.progress.rows - self.progress.done)
        self._target.save(self._manifest)

    def _check_shards(self) -> None:
        """Refuse to write among the parts of another input, other options or other shards."""
        mine = _of_all_shards(self._manifest.about)
        for path, other in self._target.others().items():
            if changed := differences(_of_all_shards(other.about), mine):
                raise FileRefused(
                    f"{path} is of a run of something else: {'; '.join(changed[:3])}. Name another "
                    f"folder, or remove {self._target.folder}"
                )
            self._note_models(other.models)

    def work(self, on_progress: Callable[[Progress], None]) -> None:
        """Predict what is left.

        Raises:
            FileRefused: An input or the target cannot be used any more; what is done stays.
            RunStopped: Too many rows failed, or the workers stopped answering.
        """
        for group in self.groups:
            if group.number in self._manifest.done:
                continue
            self._check_failures()
            row = self._write(group, on_progress)
            self._manifest.done[group.number] = row
            self._target.save(self._manifest)
            self._check_failures()

    def _write(self, group: RowGroup, on_progress: Callable[[Progress], None]) -> dict[str, Any]:
        before = dataclasses.replace(self.progress, codes=Counter(self.progress.codes))
        schema = part_schema(self.data, group.file)
        try:
            with self._target.writing(group.number, schema) as writer:
                blocks, settings = self.data.blocks(group), self._settings
                for block, answers in answered(self._engine, blocks, settings.share, settings.normalize):
                    self._note_models(answers.models)
                    writer.write_batch(part_rows(block, answers, schema))
                    self.progress.done += len(block)
                    self.progress.failed += len(answers.failures)
                    self.progress.escalated += len(answers.taken)
                    self.progress.codes.update(code for code, _ in answers.failures.values())
                    on_progress(self.progress)
                self._check_unchanged(group)
        except BaseException:
            self.progress = before
            raise
        now = self.progress
        return {
            "rows": now.done - before.done,
            "failed": now.failed - before.failed,
            "escalated": now.escalated - before.escalated,
            "codes": dict(now.codes - before.codes),
        }

    def _check_unchanged(self, group: RowGroup) -> None:
        """Refuse a file that was written while it was read: rows of two states may be mixed."""
        stored = self._manifest.about["inputs"][self.data.files.index(group.file)]
        if state_of(group.file.path) != (stored["bytes"], stored["mtime_ns"]):
            raise FileRefused(f"{group.file.path} was changed while it was read; run it again with --restart")

    def _note_models(self, models: Mapping[str, str]) -> None:
        """Keep the ids of the first answers.

        Raises:
            RunStopped: A resumed run is answered by others.
        """
        for name, value in models.items():
            known = self._manifest.models.setdefault(name, value)
            if known != value:
                raise RunStopped(
                    f"{name} was {known} and is {value} now: one target holds answers of one {name}; put "
                    f"{known} back and go on, or begin anew with --restart"
                )

    def _check_failures(self) -> None:
        limit = self._settings.failures_max
        if limit is None:
            return
        most = limit * self.progress.rows if limit < 1 else limit
        codes = self.progress.codes - Counter({SHORT_DOCUMENT[0]: self.progress.rows})
        if (failed := codes.total()) > most:
            found = ", ".join(f"{code} {count:,}" for code, count in codes.most_common(3))
            raise RunStopped(
                f"{failed:,} rows failed ({found}), more than the {most:,.0f} of "
                "--failures-max; mend the input, or run again with a larger limit: what is done stays"
            )

    def _about(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self._settings)
        for name in ("restart", "failures_max"):
            del settings[name]
        return {
            "inputs": [identity(file) for file in self.data.files],
            "form": self.data.form,
            "columns": {
                k: list(v) if isinstance(v, tuple) else v
                for k, v in dataclasses.asdict(self.data.columns).items()
            },
            "options": settings | {"shard": list(self._settings.shard)},
        }


def _of_all_shards(about: dict[str, Any]) -> dict[str, Any]:
    """Return what is the same in every shard of a run."""
    options = dict(about["options"])
    return about | {"options": options | {"shard": f"one of {options['shard'][1]}"}}


def checked(block: RowBlock, normalize: bool) -> RowBlock:
    """Return a block whose rows without an error keep the contract; each vector is looked at once."""
    good, vectors = are_unit(block.vectors), block.vectors
    if normalize and not good.all():
        vectors = vectors.copy()
        with np.errstate(all="ignore"):
            vectors[~good] /= np.linalg.norm(vectors[~good].astype(np.float32), axis=1, keepdims=True)
        good = are_unit(vectors)
    block = dataclasses.replace(block, vectors=vectors, errors=dict(block.errors))
    windows = block.windows
    for row in np.flatnonzero(~good[windows.rows].all(axis=1)).tolist():
        if row not in block.errors:
            try:
                checked_context(vectors[windows.rows[row]], normalize=normalize)
            except InvalidRequest as error:
                block.errors[row] = error.code, str(error)
    return block


def answered(
    engine: Engine, blocks: Iterable[RowBlock], share: float, normalize: bool
) -> Iterator[tuple[RowBlock, Answers]]:
    """Yield each block with its answers, in order.

    Some blocks are under way at once, so that neither the workers nor the disk wait for the other.
    """
    first: deque[tuple[RowBlock, NDArray[np.intp], Waits]] = deque()
    second: deque[tuple[RowBlock, Answers, Waits]] = deque()

    def choose() -> None:
        block, rows, waits = first.popleft()
        answers = waits()
        if len(rows) < len(block):
            some, answers = answers, Answers(len(block))
            answers.put(rows, some)
        answers.failures |= block.errors
        answers.taken = chosen(answers, share)
        second.append((block, answers, engine.slow(block.windows.part(answers.taken))))

    def finish() -> tuple[RowBlock, Answers]:
        block, answers, waits = second.popleft()
        answers.better(waits())
        return block, answers

    for block in blocks:
        block = checked(block, normalize)
        rows = block.good
        windows = block.windows if len(rows) == len(block) else block.windows.part(rows)
        first.append((block, rows, engine.fast(windows)))
        if len(first) > _AHEAD:
            choose()
        if len(second) > _AHEAD:
            yield finish()
    while first:
        choose()
    while second:
        yield finish()
