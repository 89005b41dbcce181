"""Files of contexts to files of vectors: streamed in, written whole or not at all."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amn.data.arrays import FileRows, RowsWriter, writing_rows
from amn.errors import FileRefused
from amn.files import check_output
from producer import BatchHandle, Handle, Producer
from producer.errors import InvalidRequest, QueueError, ResultTimeout, ServerError
from producer.messages import BULK_PRIORITY, CONTEXT_SHAPE, DIMENSIONS
from producer.options import Options
from producer.protocol.checks import checked_context, checked_contexts

#: Rows of one batch.
_CHUNK = 128
_REPORTED_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """The options of sending a file through the queue.

    Attributes:
        lane, domain: Fields of each request.    normalize: True to scale rows to unit norm.
        fast: True to take the AMN answer of every row, and not to wait for fallbacks.
        in_flight: Rows that wait for their answer at once.

    Raises:
        ValueError: `in_flight` is below 1.
    """

    lane: str = "general"
    domain: str = ""
    normalize: bool = False
    fast: bool = False
    in_flight: int = 1024

    def __post_init__(self) -> None:
        if self.in_flight < 1:
            raise ValueError(f"in_flight is {self.in_flight}; use at least 1")


@dataclass(slots=True)
class FileResult:
    """The outcome of the rows of a file.

    Attributes:
        rows: In the file.    failed: Rows without an answer; NaN in the output.
        failures: The first failures: (row, code, message).
        served: Answers by model.
    """

    rows: int
    failed: int = 0
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)

    def fail(self, row: int, error: QueueError) -> None:
        """Counts a row without an answer; the first hundred are kept by name."""
        self.failed += 1
        if len(self.failures) < _REPORTED_MAX:
            self.failures.append((row, error.code, str(error)))

    def to_json(self) -> dict[str, Any]:
        """Plain values: `amn predict --json`, and the result of a job."""
        return {
            "rows": self.rows,
            "answered": self.rows - self.failed,
            "failed": self.failed,
            "served_by": dict(self.served),
            "failures": [{"row": row, "code": code, "message": text} for row, code, text in self.failures],
        }


#: Takes the rows that are done, and all.
Progress = Callable[[int, int], None]


def open_contexts(path: Path) -> FileRows:
    """Opens a file of contexts: shape (N, 5, 768), float32 or float16. Rows are read when they are asked for.

    Raises:
        FileRefused: Missing, damaged, not an .npy file, or of another shape or type.
    """
    rows = FileRows(path)
    if rows.ndim != 3 or rows.shape[1:] != CONTEXT_SHAPE or not len(rows):
        raise FileRefused(f"{path} has shape {rows.shape}; expected (N, 5, 768) with N >= 1")
    if rows.dtype not in (np.float16, np.float32):
        raise FileRefused(f"{path} holds {rows.dtype}; save it as float32 or float16 (array.astype('f4'))")
    return rows


def predict_rows(
    source: Path, target: Path, producer: Producer, options: FileOptions, on_progress: Progress
) -> FileResult:
    """Sends every row of a file to a producer, in order, with a bounded number in flight.

    Rows go in batches. One that a soft rule flagged, and that a fallback may be worth, goes again by
    itself, so that the answers are those of `predict`; with `fast`, AMN's stays. A bad row fails
    alone: its output row is NaN, and the result names it.

    Raises:
        FileRefused: A file cannot be used.
        ServerError, ResultTimeout: The server or the workers went away; nothing is written.
    """
    contexts = open_contexts(source)
    check_output(target, source)
    chunk = min(_CHUNK, options.in_flight)
    with writing_rows(target, len(contexts), DIMENSIONS, "<f4") as output:
        rows = _Rows(contexts, output, producer, options)
        for first in range(0, len(contexts), chunk):
            rows.take(options.in_flight - chunk)
            rows.send(range(first, min(first + chunk, len(contexts))))
            on_progress(rows.done, len(contexts))
        rows.take(0)
        on_progress(rows.done, len(contexts))
        contexts.check_unchanged()
    return rows.result


class _Rows:
    """The rows of a file on their way: sent as batches, and by themselves where that is not enough."""

    def __init__(
        self, contexts: FileRows, output: RowsWriter, producer: Producer, options: FileOptions
    ) -> None:
        self.result, self.done = FileResult(len(contexts)), 0
        self._contexts, self._output, self._producer, self._options = contexts, output, producer, options
        self._each = Options(
            lane=options.lane, domain=options.domain, provisional=options.fast, priority=BULK_PRIORITY
        )
        self._batches: deque[tuple[list[int], NDArray[np.floating], BatchHandle]] = deque()
        self._singles: deque[tuple[int, Handle]] = deque()
        self._waiting = 0

    def send(self, rows: range) -> None:
        """Sends rows as one batch; what breaks the contract ends here."""
        block, good, kept = self._contexts[rows.start : rows.stop], list(rows), []
        self._waiting += len(rows)
        try:
            contexts = checked_contexts(block, normalize=self._options.normalize)
        except InvalidRequest:
            good = []
            for row, context in zip(rows, block, strict=True):
                try:
                    kept.append(checked_context(context, normalize=self._options.normalize))
                    good.append(row)
                except InvalidRequest as error:
                    self._fail(row, error)
            if not good:
                return
            contexts = np.stack(kept)
        handle = self._producer.submit_batch(contexts, options=self._each, block=True)
        self._batches.append((good, contexts, handle))

    def take(self, limit: int) -> None:
        """Takes answers until at most so many rows wait."""
        while self._waiting > max(limit, 0):
            if self._singles:
                self._take_single(*self._singles.popleft())
            else:
                self._take_batch(*self._batches.popleft())

    def _take_batch(self, rows: list[int], contexts: NDArray[np.floating], handle: BatchHandle) -> None:
        try:
            reply = handle.first() if self._options.fast else handle.result()
        except (ServerError, ResultTimeout):
            raise
        except QueueError:
            again = np.arange(len(rows))  # one of them is to blame: alone, it fails alone
        else:
            self._output.put(rows, reply.vectors)
            again = np.flatnonzero([] if self._options.fast else reply.shed_as("batch"))
            self._end(len(rows) - len(again), reply.served_by)
        if len(again):
            handles = self._producer.submit_many(list(contexts[again]), options=self._each, block=True)
            self._singles.extend(zip([rows[i] for i in again], handles, strict=True))

    def _take_single(self, row: int, handle: Handle) -> None:
        try:
            reply = handle.first() if self._options.fast else handle.result()
        except (ServerError, ResultTimeout):
            raise
        except QueueError as error:
            self._fail(row, error)
        else:
            self._output.put([row], reply.vector)
            self._end(1, reply.served_by)

    def _fail(self, row: int, error: QueueError) -> None:
        self._output.put([row], np.nan)
        self.result.fail(row, error)
        self._end(1)

    def _end(self, count: int, model: str = "") -> None:
        if model:
            self.result.served[model] += count
        self.done += count
        self._waiting -= count


class DirectProducer:
    """Answers batches with the AMN model in this process: no server, no gate, no fallback.

    Raises:
        CheckpointError: The model does not hold.
    """

    def __init__(self, model: Path) -> None:
        from amn.predictor import Predictor

        self._predictor = Predictor.open(model)

    def submit_batch(self, contexts: NDArray[np.floating], **_: Any) -> Any:
        """Computes a batch; returns a handle that is done."""
        vectors = self._predictor.predict(contexts.astype(np.float32, copy=False))
        reply = SimpleNamespace(vectors=vectors, served_by=self._predictor.name)
        return SimpleNamespace(first=lambda: reply)
