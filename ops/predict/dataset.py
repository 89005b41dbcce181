"""A data set to predict: its form, the columns that count, and blocks of rows with their contexts.

Two forms are known. In *contexts* a row is five vectors. In *documents* it is one vector, and the context of
a row is that row and the four before it in its document; the row after it, where there is one, is the truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from pyarrow import compute

from amn.data.readers import encoder_of
from amn.errors import FileRefused
from amn.manifest import EncoderName, check_one_encoder
from ops.predict.columns import KEYS, TEXT, ColumnNames, Texts, numbers, texts, width_of
from ops.predict.sources import ArrayFile, RowGroup, SourceFile, row_groups
from ops.predict.windows import NULL_VECTOR, D, K, RowBlock, VectorRows, clean, windows

CONTEXTS, DOCUMENTS = "contexts", "documents"
#: Rows of a block: what is escalated is chosen within one, so that it depends on nothing else.
BLOCK_ROWS = 1_024
_VECTOR_NAMES = ("context", "vector", "embedding", "vectors", "contexts")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Files of one form.

    Attributes:
        files: In order.
        form: CONTEXTS or DOCUMENTS.
        columns: With the name of the vectors filled in.
        groups: Their row groups, in order.
    """

    files: Sequence[SourceFile]
    form: str
    columns: ColumnNames
    groups: Sequence[RowGroup] = field(default_factory=list)
    _tail: dict[int, VectorRows] = field(default_factory=dict)

    @classmethod
    def of(cls, files: Sequence[SourceFile], columns: ColumnNames) -> DataSet:
        """Find out the form, and check every schema.

        Raises:
            FileRefused: A column is missing, has another type, or files differ.
        """
        found: dict[tuple[str, str], SourceFile] = {}
        for file in files:
            found.setdefault(_form(file, columns), file)
        if len(found) > 1:
            names = " and ".join(f"{file.path} ({form})" for (form, _), file in found.items())
            raise FileRefused(f"one run takes one form with one name of vectors; here are {names}")
        [(form, vector)] = found
        data = cls(files=files, form=form, columns=replace(columns, vector=vector), groups=row_groups(files))
        for file in files:
            if missing := [name for name in columns.carried if name not in file.schema.names]:
                raise FileRefused(
                    f"{file.path} lacks {', '.join(missing)}; it has {', '.join(file.schema.names)}"
                )
            keys = (columns.document, columns.position) if form == DOCUMENTS else ()
            lacking = [name for name in keys if name not in file.schema.names]
            if lacking and not (isinstance(file, ArrayFile) and keys == KEYS == tuple(lacking)):
                raise FileRefused(
                    f"{file.path} has no column {lacking[0]!r}, which documents need; it has "
                    f"{', '.join(file.schema.names)}: name yours with --document and --position"
                )
            data._check_kept(file)
        return data

    def _check_kept(self, file: SourceFile) -> None:
        """Refuse columns that occur twice, that have no order or text, or that differ between files."""
        first, named = self.files[0], self.columns
        for name in (named.vector, *self.kept_names(file)):
            if file.schema.names.count(name) > 1:
                raise FileRefused(f"{file.path} has several columns {name!r}; rename all but one")
        for name in self.kept_names(file):
            kind = file.schema.field(name).type
            empty = pa.types.is_null(kind) and name != named.domain  # rows without a domain are no fault
            if name not in named.carried and (pa.types.is_nested(kind) or empty):
                raise FileRefused(f"{file.path}: column {name} is {kind}; give text, numbers or times")
        kinds, others = (
            {name: one.schema.field(name).type for name in self.kept_names(one)} for one in (file, first)
        )
        for name in sorted(kinds.keys() | others.keys()):
            if kinds.get(name) != others.get(name):
                raise FileRefused(
                    f"column {name} is {kinds.get(name, 'missing')} in {file.path} and "
                    f"{others.get(name, 'missing')} in {first.path}; all files of a run have the same one"
                )

    def encoder(self, given: str) -> EncoderName:
        """Return the encoder that the files name, or else the given one.

        Raises:
            CheckpointError: They name several, or another one than is given.
        """
        found = {str(file.path): encoder_of(file.schema.metadata or {}) for file in self.files}
        named = {name: one for name, one in found.items() if one.encoder_id}
        check_one_encoder(named | ({"--encoder": EncoderName(given)} if given else {}))
        return max(named.values(), default=EncoderName(given))

    def kept_names(self, file: SourceFile) -> list[str]:
        """Return the columns that go to the target: the keys, the domain and what is carried."""
        named = self.columns
        keys = (named.document, named.position, named.domain, *named.carried)
        return [name for name in dict.fromkeys(keys) if name in file.schema.names]

    def blocks(self, group: RowGroup) -> Iterator[RowBlock]:
        """Yield the rows of a row group, at most `BLOCK_ROWS` at a time.

        Raises:
            FileRefused: It cannot be read any more.
        """
        if self.form == CONTEXTS:
            yield from self._of_contexts(group)
        else:
            yield from self._of_documents(group)

    def _of_contexts(self, group: RowGroup) -> Iterator[RowBlock]:
        first = group.first_row
        for batch, kept in self._read(group):
            rows = numbers(batch.column(0), (K, D))
            yield RowBlock(
                group=group.number,
                file=group.name,
                first_row=first,
                vectors=clean(rows.values, rows.good).reshape(-1, D),
                step=K,
                errors=dict.fromkeys(np.flatnonzero(~rows.good).tolist(), NULL_VECTOR),
                known=np.zeros(len(rows.values), bool),
                kept=kept,
            )
            first += len(rows.values)

    def _of_documents(self, group: RowGroup) -> Iterator[RowBlock]:
        first, before = group.first_row, self._before(group)
        batches = ((self._vectors(group, *batch), batch[1]) for batch in self._read(group))
        rows, kept = next(batches)
        while True:
            ahead = next(batches, None)
            after = ahead[0] if ahead else self._after(group)
            beside = {"group": group.number, "file": group.name, "first_row": first, "kept": kept}
            yield windows(before, rows, after, **beside)
            before = (rows if len(rows.values) >= K - 1 else before + rows).last(K - 1)
            first += len(rows.values)
            if ahead is None:
                break
            rows, kept = ahead
        self._tail.clear()
        self._tail[group.number] = (
            before  # whoever goes on with the next row group need not read this one again
        )

    def _read(self, group: RowGroup) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        """Yield the vectors, and what is kept beside them."""
        kept = self.kept_names(group.file)
        for batch in group.file.batches(group.in_file, [self.columns.vector, *kept], BLOCK_ROWS):
            yield batch.select([self.columns.vector]), batch.select(kept)

    def _vectors(self, group: RowGroup, batch: pa.RecordBatch, kept: pa.RecordBatch) -> VectorRows:
        rows = numbers(batch.column(0), (D,))
        documents = _text(kept, self.columns.document)
        if not documents.size:
            documents = np.full(len(rows.values), group.name, TEXT)
        return VectorRows(rows.values, rows.good, documents)

    def _before(self, group: RowGroup) -> VectorRows:
        """Return up to four rows before a row group."""
        if group.number - 1 in self._tail:
            return self._tail[group.number - 1]
        found = VectorRows.none()
        for other in reversed(self.groups[: group.number]):
            tail = VectorRows.none()
            for batch, kept in self._read(other):
                tail = (tail + self._vectors(other, batch, kept)).last(K - 1)
            found = (tail + found).last(K - 1)
            if len(found.values) == K - 1:
                break
        return found

    def _after(self, group: RowGroup) -> VectorRows:
        """Return the row after a row group, if there is one."""
        for other in self.groups[group.number + 1 :]:
            names = [self.columns.vector, *self.kept_names(other.file)]
            for batch in other.file.batches(other.in_file, names, 1):
                return self._vectors(other, batch.select(names[:1]), batch.select(names[1:]))
        return VectorRows.none()

    def check_order(self) -> int:
        """Check that the rows of a document lie together, in the order of their positions.

        Returns:
            How many documents there are.

        Raises:
            FileRefused: They do not, or one has no id or position.
        """
        seen: set[str] = set()
        last, last_position = None, None
        for group in self.groups if self.form == DOCUMENTS else ():
            keys = (self.columns.document, self.columns.position)
            names = [name for name in keys if name in group.file.schema.names]
            if len(names) < 2:
                seen.add(group.name)
                last = None
                continue
            first, path, sort = group.first_row, group.file.path, f"sort the rows by {' and '.join(names)}"
            for batch in group.file.batches(group.in_file, names, 65_536):
                for name, column in zip(names, batch.columns, strict=True):
                    if (row := compute.index(column.is_null(nan_is_null=True), True).as_py()) >= 0:
                        raise FileRefused(f"{path}: row {first + row} has no {name} (null or NaN)")
                ids, positions = texts(batch.column(0)), batch.column(1).to_numpy(zero_copy_only=False)
                new = np.concatenate([[ids[0] != last], ids[1:] != ids[:-1]])
                before = np.concatenate([[positions[0] if last is None else last_position], positions[:-1]])
                for row in np.flatnonzero(~new & (positions <= before)):
                    raise FileRefused(
                        f"{path}: row {first + row} of document {ids[row]} has position {positions[row]} "
                        f"after {before[row]}; {sort}"
                    )
                for row in np.flatnonzero(new):
                    if ids[row] in seen:
                        raise FileRefused(
                            f"{path}: row {first + row} goes on with document {ids[row]}, which ended "
                            f"before; {sort}"
                        )
                    seen.add(ids[row])
                last, last_position = ids[-1], positions[-1]
                first += len(ids)
        return len(seen)


def _form(file: SourceFile, columns: ColumnNames) -> tuple[str, str]:
    """Return form and name of the vectors."""
    names = (columns.vector,) if columns.vector else _VECTOR_NAMES
    known = [name for name in names if name in file.schema.names]
    if not known:
        raise FileRefused(
            f"{file.path} has no column {' or '.join(names)}; it has {', '.join(file.schema.names)}: name "
            "yours with --vector"
        )
    name = known[0]
    kind = file.schema.field(name).type
    whys = {form: width_of(kind, shape) for form, shape in ((CONTEXTS, (K, D)), (DOCUMENTS, (D,)))}
    possible = [form for form, why in whys.items() if not why]
    if len(possible) > 1:  # lists of any length: the first one tells
        possible = [CONTEXTS if _first_length(file, name) == K * D else DOCUMENTS]
    if not possible:
        raise FileRefused(f"{file.path}: column {name} is {whys[DOCUMENTS]}, or {K} x {D} of a context")
    return possible[0], name


def _first_length(file: SourceFile, name: str) -> int:
    for group in range(len(file.groups)):
        for batch in file.batches(group, [name], 64):
            for row in batch.column(0):
                if row.is_valid:
                    return len(row.as_py())
    return 0


def _text(kept: pa.RecordBatch, name: str) -> Texts:
    if name not in kept.schema.names:
        return np.zeros(0, TEXT)
    return texts(kept.column(name))
