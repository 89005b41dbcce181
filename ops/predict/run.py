"""One run over a data set: row groups in order, each a part that appears whole and stays."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amn.errors import FileRefused
from ops.errors import RunStopped
from ops.predict.answers import Answers
from ops.predict.dataset import DataSet
from ops.predict.engines import Engine, answered
from ops.predict.models import ModelsChanged, ModelSets, differing, merge
from ops.predict.parts import Target, TargetManifest, differences
from ops.predict.rows import part_rows, part_schema
from ops.predict.settings import PredictSettings, faults
from ops.predict.sources import RowGroup, identity, state_of
from ops.predict.truths import TruthReporter
from ops.predict.windows import RowBlock

#: Pauses before a row group is answered again: a pool replaces its workers in turn, and until all are new,
#: answers of both come.
_CHANGING_S = (0.5, 1, 2, 4, 8, 15, 30, 60, 120, 240)


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

    @property
    def faults(self) -> int:
        """Failed rows but for those at the begin of a document, which no model answers."""
        return faults(self.codes).total()

    def count(self, row: dict[str, Any]) -> None:
        """Add a row group that is done."""
        self.done += row["rows"]
        self.failed += row["failed"]
        self.escalated += row["escalated"]
        self.codes.update(row.get("codes", {}))


class FileRun:
    """A run into one target.

    Attributes:
        manifest: Its subject, the models that answered, and what is done.
    """

    def __init__(
        self,
        data: DataSet,
        target: Target,
        engine: Engine,
        settings: PredictSettings,
        truths: TruthReporter | None = None,
    ) -> None:
        self.data, self._target, self._engine, self._settings = data, target, engine, settings
        self._truths = truths
        first, step = self._shard = settings.shard_numbers()
        self.groups = [group for group in data.groups if group.number % step == first]
        self.progress = Progress(rows=sum(group.rows for group in self.groups))
        self._stream: Iterator[tuple[RowBlock, Answers]] = iter(())
        self.manifest = TargetManifest(self._about())
        self._sets = ModelSets(settings.on_change)

    @property
    def parts(self) -> list[Path]:
        """The parts of this run that are done, in order."""
        return [self._target.part(number) for number in sorted(self.manifest.done)]

    def begin(self) -> None:
        """Take up what an earlier run did.

        Raises:
            FileRefused: It was of another input or with other options, or there is no room.
        """
        self._check_shards()
        if self._settings.restart:
            self._target.clear([group.number for group in self.groups] if self._settings.shard else None)
        self.manifest = self._target.taken_up(self.manifest.about)
        for row in self.manifest.done.values():
            self.progress.count(row)
        for models in self.manifest.sets():
            self._sets.add(models)
        self._sets.check(self._engine.models)
        self.manifest.models = self._sets.first
        self.progress.skipped = self.progress.done
        self._target.check_room(self.progress.rows - self.progress.done)
        self._target.save(self.manifest)

    def _check_shards(self) -> None:
        """Refuse to write among the parts of another input, other options or other shards."""
        mine = _of_all_shards(self.manifest.about)
        for path, other in self._target.others().items():
            if changed := differences(_of_all_shards(other.about), mine):
                raise FileRefused(
                    f"{path} is of a run of something else: {'; '.join(changed[:3])}. Name another "
                    f"folder, or remove {self._target.folder}"
                )
            for models in other.sets():
                self._sets.add(models)

    def work(self, on_progress: Callable[[Progress], None]) -> None:
        """Predict what is left.

        Raises:
            FileRefused: An input or the target cannot be used any more; what is done stays.
            RunStopped: Too many rows failed, or the workers stopped answering.
        """
        self._check_failures()
        left = [group for group in self.groups if group.number not in self.manifest.done]
        self._stream = self._answers(left)
        for at, group in enumerate(left):
            self.manifest.done[group.number] = self._one_set(left[at:], on_progress)
            self._target.add(self.manifest, group.number)
            self._check_failures()
        self._target.save(self.manifest)

    def _answers(self, groups: Sequence[RowGroup]) -> Iterator[tuple[RowBlock, Answers]]:
        """Answer the blocks of row groups; those of the next one are under way before one ends."""
        blocks = (block for group in groups for block in self.data.blocks(group))
        return answered(self._engine, blocks, self._settings.share, self._settings.normalize)

    def _one_set(self, groups: Sequence[RowGroup], on_progress: Callable[[Progress], None]) -> dict[str, Any]:
        """Predict the first of some row groups, and again where the models changed in the middle."""
        for pause_s in _CHANGING_S:
            try:
                return self._write(groups[0], on_progress)
            except ModelsChanged as change:
                why = str(change)
                time.sleep(pause_s)
                self._stream = self._answers(groups)
        raise RunStopped(
            f"{why}, again and again: different models serve this queue; what is done stays, and the same "
            "command goes on"
        )

    def _write(self, group: RowGroup, on_progress: Callable[[Progress], None]) -> dict[str, Any]:
        models: dict[str, str] = {}
        before = dataclasses.replace(self.progress, codes=Counter(self.progress.codes))
        schema = part_schema(self.data, group.file)
        try:
            with self._target.writing(group.number, schema) as writer:
                for block, answers in self._stream:
                    self._sets.check(answers.models)
                    merge(models, answers.models)
                    writer.write_batch(part_rows(block, answers, schema))
                    if self._truths is not None:
                        self._truths.offer(self._input(group), group, block, models.get("model", ""))
                    self.progress.done += len(block)
                    self.progress.failed += len(answers.failures)
                    self.progress.escalated += len(answers.taken)
                    self.progress.codes.update(code for code, _ in answers.failures.values())
                    on_progress(self.progress)
                    if self.progress.done - before.done >= group.rows:
                        break
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
            **({"models": models} if differing(self._sets.first, models) else {}),
        }

    def _input(self, group: RowGroup) -> dict[str, Any]:
        found: dict[str, Any] = self.manifest.about["inputs"][self.data.files.index(group.file)]
        return found

    def _check_unchanged(self, group: RowGroup) -> None:
        """Refuse a file that was written while it was read: rows of two states may be mixed."""
        stored = self._input(group)
        if state_of(group.file.path) != (stored["bytes"], stored["mtime_ns"]):
            raise FileRefused(f"{group.file.path} was changed while it was read; run it again with --restart")

    def _check_failures(self) -> None:
        limit = self._settings.failures_limit()
        if limit is None:
            return
        most = limit * self.progress.rows if limit < 1 else limit
        if (failed := self.progress.faults) > most:
            found = ", ".join(
                f"{code} {count:,}" for code, count in faults(self.progress.codes).most_common(3)
            )
            raise RunStopped(
                f"{failed:,} rows failed ({found}), more than the {most:,.0f} of "
                "--failures-max; mend the input, or run again with a larger limit: what is done stays"
            )

    def _about(self) -> dict[str, Any]:
        columns = dataclasses.asdict(self.data.columns)
        return {
            "inputs": [identity(file) for file in self.data.files],
            "form": self.data.form,
            "columns": columns | {"carried": list(columns["carried"])},
            "options": {
                "share": self._settings.share,
                "normalize": self._settings.normalize,
                "shard": list(self._shard),
            },
        }


def _of_all_shards(about: dict[str, Any]) -> dict[str, Any]:
    """Return what is the same in every shard of a run."""
    options = dict(about["options"])
    return about | {"options": options | {"shard": f"one of {options['shard'][1]}"}}
