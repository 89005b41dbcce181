"""One run from documents to a folder of vectors: parts that appear whole and stay, in reading order."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from amn.config import VECTOR_DIM
from amn.data.vectors import check_rows
from amn.data.vectors import chunks as slices
from amn.errors import FileRefused
from ops.encode.chunks import WORDS_MIN, chunks, is_of_words
from ops.encode.documents import EMPTY, SHORT, SUFFIXES, WORDLESS, RefusedDocument, documents
from ops.encode.encoder import Encoder
from ops.encode.settings import EncodeSettings
from ops.predict.parts import COUNTS, Target
from ops.predict.settings import check_apart, check_ours
from ops.predict.sources import expand, state_of

#: Chunks of a part, which is what a kill makes the next run repeat; or refused documents in it.
PART_ROWS = 1_024
#: There may be more sources than a part has rows, so they are not all looked at for each part.
_LOOK_S = 60.0
#: Chunks between two signs of progress.
_STEP_ROWS = 128
#: So many refused documents are in a summary; the manifest has all.
_TOLD = 1_000


@dataclass(slots=True)
class DocumentPart:
    """The rows of a part without their vectors, and the documents between them that have none."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    refused: list[RefusedDocument] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """True if nothing more goes into it."""
        return max(len(self.rows), len(self.refused)) >= PART_ROWS


@dataclass(slots=True, kw_only=True)
class EncodeProgress:
    """The progress of a run.

    Attributes:
        step: "reading" or "encoding".
        rows, done, skipped: Chunks of all documents; of them encoded; of those by an earlier run.
        documents: How many there are, with those that were refused.
        cut: Chunks of more tokens than the encoder takes.
        codes, refused: Refused documents by code, and the first of them.
    """

    step: str = "reading"
    rows: int = 0
    done: int = 0
    skipped: int = 0
    documents: int = 0
    cut: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    refused: list[RefusedDocument] = field(default_factory=list)

    def count(self, part: DocumentPart) -> None:
        """Add a part that was read."""
        self.rows += len(part.rows)
        self.documents += sum(row["position"] == 0 for row in part.rows) + len(part.refused)
        self.codes.update(one.code for one in part.refused)
        self.refused += part.refused[: _TOLD - len(self.refused)]


class EncodeRun:
    """A run into one target.

    All is read twice: once to count it and to find what is no document before hours of work, and once to
    encode it. Both times the same parts come out, and those that are done are passed over.
    """

    def __init__(self, settings: EncodeSettings, on_progress: Callable[[EncodeProgress], None]) -> None:
        """Checks what can be known before any work.

        Raises:
            FileRefused: A source, the encoder or the target cannot be used.
        """
        self._settings, self._on_progress, self.progress = settings, on_progress, EncodeProgress()
        try:
            b" ".decode(settings.charset, "replace")
        except (LookupError, ValueError) as error:  # also for `hex` and `zip`, which are codecs of no text
            raise FileRefused(f"charset {settings.charset!r} is unknown; use utf-8 or cp1252") from error
        self._paths = expand(settings.sources, SUFFIXES)
        check_apart(settings.sources, self._paths, settings.out)
        check_ours(Path(settings.out))
        self._states, self._looked_s = self._states_now(), -math.inf
        self._encoder = Encoder(settings.encoder, settings.encoder_id, settings.precision)
        self._schema = _schema(settings, self._encoder)

    def work(self) -> dict[str, Any]:
        """Encode what is left; returns the summary.

        Raises:
            FileRefused: There is no text, or a source or the target cannot be used; what is done stays.
        """
        started_s = time.perf_counter()
        for part in self._parts():
            self.progress.count(part)
            self._on_progress(self.progress)
        if not self.progress.rows:
            first = "".join(f": {one.name}: {one.message}" for one in self.progress.refused[:1])
            raise FileRefused(f"{', '.join(self._settings.sources)} hold nothing to encode{first}")
        with Target(Path(self._settings.out)) as target:
            self._fill(target)
        return self._summary(time.perf_counter() - started_s)

    def _fill(self, target: Target) -> None:
        if self._settings.restart:
            target.clear()
        manifest, progress = target.taken_up(self._about()), self.progress
        manifest.models = {"encoder": self._encoder.id}
        progress.done = progress.skipped = sum(row["rows"] for row in manifest.done.values())
        progress.cut = sum(row.get("cut", 0) for row in manifest.done.values())
        target.check_room(progress.rows - progress.done, np.dtype(self._settings.dtype).itemsize)
        target.save(manifest)
        progress.step = "encoding"
        for number, part in enumerate(self._parts()):
            if number not in manifest.done:
                self._check_states(_LOOK_S)
                self._write(target, number, part)
                refused = [dataclasses.asdict(one) for one in part.refused]
                cut = self._encoder.cut([row["text"] for row in part.rows])
                progress.cut += cut
                counts = dict.fromkeys(COUNTS, 0) | {"rows": len(part.rows), "failed": len(refused)}
                manifest.done[number] = counts | {"refused": refused, "cut": cut}
                target.add(manifest, number)
        self._check_states()
        target.save(manifest)

    def _check_states(self, each_s: float = 0.0) -> None:
        """Refuse to go on when a source was changed: hours of work would be of two states of it."""
        if time.monotonic() < self._looked_s + each_s:
            return
        for path, state in self._states_now().items():
            if state != self._states[path]:
                raise FileRefused(f"{path} was changed while it was read; run it again with --restart")
        self._looked_s = time.monotonic()

    def _parts(self) -> Iterator[DocumentPart]:
        """Yield the parts of all documents: the same ones whenever the sources are the same."""
        part = DocumentPart()
        for one in documents(self._paths, self._settings):
            found = [] if isinstance(one, RefusedDocument) else chunks(one.text)
            if isinstance(one, RefusedDocument):
                part.refused.append(one)
            elif not is_of_words(one.text):
                said = "most of it has no spaces, and so no words to make chunks of; part them by spaces"
                part.refused.append(RefusedDocument(one.id, WORDLESS, said))
            elif not found:
                empty = RefusedDocument(one.id, EMPTY, "it has no text")
                short = RefusedDocument(one.id, SHORT, f"it has fewer than {WORDS_MIN} words of prose")
                part.refused.append(short if one.text.strip() else empty)
            else:
                for position, chunk in enumerate(found):
                    if part.full:
                        yield part
                        part = DocumentPart()
                    known = {"doc_id": one.id, "position": position, "domain": one.domain}
                    part.rows.append(known | dataclasses.asdict(chunk))
            if part.full:
                yield part
                part = DocumentPart()
        if part.rows or part.refused:
            yield part

    def _write(self, target: Target, number: int, part: DocumentPart) -> None:
        """Encode a part, texts of about one length together, and store it."""
        texts, schema = [row["text"] for row in part.rows], self._schema
        order = np.argsort([-len(text) for text in texts], kind="stable")
        vectors = np.empty((len(texts), VECTOR_DIM), np.float32)
        for rows in slices(len(texts), _STEP_ROWS):
            vectors[order[rows]] = self._encoder.encode([texts[i] for i in order[rows]])
            self.progress.done += len(order[rows])
            self._on_progress(self.progress)
        check_rows(f"{self._settings.encoder}, part {number}", vectors, 0)
        numbers = pa.array(vectors.astype(self._settings.dtype).reshape(-1))
        arrays = [
            pa.array([row[name] for row in part.rows], schema.field(name).type) for name in schema.names[:-1]
        ]
        arrays.append(pa.FixedSizeListArray.from_arrays(numbers, VECTOR_DIM))
        with target.writing(number, schema, repeated=("doc_id", "domain")) as writer:
            if texts:
                writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))

    def _states_now(self) -> dict[str, list[int]]:
        return {str(path): list(state_of(path)) for path in self._paths}

    def _about(self) -> dict[str, Any]:
        chosen = dataclasses.asdict(self._settings)
        for name in ("sources", "out", "encoder", "encoder_id", "restart"):
            del chosen[name]
        chosen |= {"keep": sorted(chosen["keep"]), "part_rows": PART_ROWS}
        encoder = {"encoder": self._encoder.id, "encoder_sha256": self._encoder.sha256}
        return {"inputs": self._states, "options": chosen | encoder}

    def _summary(self, elapsed_s: float) -> dict[str, Any]:
        progress = self.progress
        return {
            "out": self._settings.out,
            "encoder": self._encoder.id,
            "documents": progress.documents,
            "rows": progress.rows,
            "resumed_rows": progress.skipped,
            "cut_rows": progress.cut,
            "codes": dict(progress.codes),
            "refused": [dataclasses.asdict(one) for one in progress.refused],
            "elapsed_s": round(elapsed_s, 3),
            "rows_per_s": round((progress.done - progress.skipped) / max(elapsed_s, 1e-9), 1),
        }


def _schema(settings: EncodeSettings, encoder: Encoder) -> pa.Schema:
    """Return the columns of a part: documents as `amn predict` reads them and as models are trained on."""
    columns = [
        ("doc_id", pa.string()),
        ("position", pa.int32()),
        ("domain", pa.string()),
        ("words", pa.int32()),
    ]
    columns += [("text", pa.string())] if "text" in settings.keep else []
    columns += [("start", pa.int64()), ("end", pa.int64())] if "offsets" in settings.keep else []
    vector = pa.list_(pa.float16() if settings.dtype == "float16" else pa.float32(), VECTOR_DIM)
    about = {"encoder": encoder.id, "encoder_sha256": encoder.sha256, "precision": settings.precision}
    return pa.schema([*columns, ("vector", vector)], metadata=about)
