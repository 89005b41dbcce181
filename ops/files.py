"""Files of contexts to files of vectors: streamed in, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.errors import FileRefused
from producer import Handle, PartitionedProducer, Producer
from producer.checks import checked_context
from producer.errors import InvalidRequest, QueueError, ResultTimeout, ServerError
from producer.messages import CONTEXT_SHAPE, DIMENSIONS
from producer.requests import Options

_CHUNK = 64
_DIRECT_BATCH = 256
_REPORTED_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """How a file goes through the queue.

    Attributes:
        lane, domain, normalize: As in `producer.requests.Options`.
        fast: Take the AMN answer of every row, and do not wait for fallbacks.
        in_flight: Rows that wait for their answer at once.
    """

    lane: str = "general"
    domain: str = ""
    normalize: bool = False
    fast: bool = False
    in_flight: int = 1024


@dataclass(slots=True)
class FileResult:
    """What became of the rows.

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


Progress = Callable[[int], None]


def open_contexts(path: Path) -> NDArray[np.floating]:
    """Maps a file of contexts into memory: shape (N, 5, 768), float32 or float16.

    Raises:
        FileRefused: Missing, not an .npy file, or of another shape or type.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FileRefused(f"{path} cannot be read as an .npy file: {error}") from error
    if not isinstance(array, np.ndarray):
        raise FileRefused(f"{path} is an archive; give one array saved with np.save")
    if array.ndim != 3 or array.shape[1:] != CONTEXT_SHAPE or not len(array):
        raise FileRefused(f"{path} has shape {array.shape}; expected (N, 5, 768) with N >= 1")
    if array.dtype not in (np.float16, np.float32):
        raise FileRefused(f"{path} holds {array.dtype}; save it as float32 or float16 (array.astype('f4'))")
    return array


def check_output(path: Path) -> None:
    """Refuses an output that could not be written, before any work is done.

    Raises:
        FileRefused: The folder is missing or not writable, or `path` is a folder.
    """
    if path.is_dir():
        raise FileRefused(f"{path} is a folder; name the file to write")
    if not path.parent.is_dir():
        raise FileRefused(f"the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise FileRefused(f"the folder {path.parent} is not writable")


@contextmanager
def _output(path: Path, rows: int) -> Iterator[NDArray[np.float32]]:
    """Shape (rows, 768), float32, mapped; appears under its name when the block ends well."""
    check_output(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(descriptor)
    try:
        array = np.lib.format.open_memmap(name, mode="w+", dtype="<f4", shape=(rows, DIMENSIONS))
        yield array
        array.flush()
        del array
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def predict_through_queue(
    source: Path,
    target: Path,
    producer: Producer | PartitionedProducer,
    options: FileOptions,
    on_progress: Progress,
) -> FileResult:
    """Sends every row through the queue, in order, with a bounded number in flight.

    A bad row fails alone: its output row is NaN, and the result names it.

    Raises:
        FileRefused: A file cannot be used.
        ServerError, ResultTimeout: The server or the workers went away; nothing is written.
    """
    contexts = open_contexts(source)
    result = FileResult(len(contexts))
    each = Options(
        lane=options.lane, domain=options.domain, normalize=options.normalize, provisional=options.fast
    )
    waiting: deque[tuple[int, Handle]] = deque()
    done = 0
    with _output(target, len(contexts)) as output:

        def take(limit: int) -> None:
            nonlocal done
            while len(waiting) > limit:
                row, handle = waiting.popleft()
                output[row] = _answer(row, handle, result, fast=options.fast)
                done += 1
                if done % _CHUNK == 0:
                    on_progress(done)

        for first in range(0, len(contexts), _CHUNK):
            good: list[tuple[int, NDArray[np.floating]]] = []
            for row in range(first, min(first + _CHUNK, len(contexts))):
                try:
                    good.append((row, checked_context(contexts[row], normalize=options.normalize)))
                except InvalidRequest as error:
                    output[row] = np.nan
                    result.fail(row, error)
                    done += 1
            take(max(options.in_flight - _CHUNK, 0))
            handles = producer.submit_many([context for _, context in good], options=each, block=True)
            waiting.extend((row, handle) for (row, _), handle in zip(good, handles, strict=True))
        take(0)
        on_progress(done)
    return result


def _answer(row: int, handle: Handle, result: FileResult, *, fast: bool) -> NDArray[np.float32] | float:
    try:
        reply = handle.first() if fast else handle.result()
    except (ServerError, ResultTimeout):
        raise
    except QueueError as error:
        result.fail(row, error)
        return np.nan
    result.served[reply.served_by] += 1
    return reply.vector


def predict_directly(
    source: Path, target: Path, model: Path, *, normalize: bool, on_progress: Progress
) -> FileResult:
    """Answers every row with the AMN model in this process: no server, no gate, no fallback.

    Raises:
        FileRefused: A file cannot be used.
        CheckpointError: The model does not hold.
    """
    from amn.predictor import Predictor

    contexts = open_contexts(source)
    check_output(target)
    predictor = Predictor.open(model)
    result = FileResult(len(contexts))
    with _output(target, len(contexts)) as output:
        for first in range(0, len(contexts), _DIRECT_BATCH):
            last = min(first + _DIRECT_BATCH, len(contexts))
            good, rows = [], []
            for row in range(first, last):
                try:
                    good.append(checked_context(contexts[row], normalize=normalize))
                    rows.append(row)
                except InvalidRequest as error:
                    output[row] = np.nan
                    result.fail(row, error)
            if good:
                output[rows] = predictor.predict(np.stack(good).astype(np.float32, copy=False))
                result.served[predictor.name] += len(rows)
            on_progress(last)
    return result
