"""The engines that compute the answers of a block: workers behind a queue, or models in this process.

Both give AMN's answer to every row with its scores, and the final answer of the rows that are chosen for a
fallback. What is chosen depends on the rows of a block alone (`chosen`), so that a file has the same answers
whoever computes them, and however often.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from amn.errors import FileRefused
from ops.errors import RunStopped
from ops.predict.models import merge
from ops.predict.windows import RowBlock, checked
from producer import BatchHandle, Options, Producer, Windows
from producer.errors import QueueError, RequestLost, ResultTimeout, ServerError
from producer.messages import BULK_PRIORITY, LANES, BatchReply

#: Contexts of one message.
MESSAGE_ROWS = 256
#: The gate says this of a row that a fallback could better, of a message that holds many.
_CHOICE = "batch"
_WAIT_MS, _PAUSE_S = 2_000.0, 0.5
#: Blocks under way at once, before and after their rows are chosen.
_AHEAD = 3
#: Row groups that they are of: so much is repeated of a run that is broken off.
_GROUPS = 2
Vectors = NDArray[np.float32]


class Answers:
    """The answers of n rows; a row without one holds NaN, and `failures` says why.

    Attributes:
        vectors: Shape (n, 768), float32, unit norm: the final answers.
        taken, fast: The rows that a fallback answers too, and AMN's answers to them.
        confidences, margins, gains: Shape (n,), float32.
        candidates: Shape (n,), rows that a fallback may better.
        reasons, sheds, served_by: Shape (n,), of each row the rules that fired, why no fallback answered all
            the same, and the model whose answer it is.
        failures: By row, code and message.
        models: The ids of model, bank, policy and fallback.
    """

    COLUMNS = ("vectors", "confidences", "margins", "gains", "candidates", "reasons", "sheds", "served_by")

    def __init__(self, count: int, vectors: Vectors | None = None) -> None:
        self.vectors: Vectors = np.full((count, 768), np.nan, np.float32) if vectors is None else vectors
        self.taken, self.fast = np.zeros(0, np.intp), self.vectors[:0]
        self.confidences, self.margins, self.gains = np.zeros((3, count), np.float32)
        self.candidates = np.zeros(count, bool)
        self.reasons, self.sheds, self.served_by = np.full((3, count), "", object)
        self.reasons[:] = [()] * count
        self.failures: dict[int, tuple[str, str]] = {}
        self.models: dict[str, str] = {}

    def put(self, rows: NDArray[np.intp], other: Answers, *columns: str) -> None:
        """Take the answers of another for some rows; without names, all columns. Errors as `merge`."""
        for name in columns or self.COLUMNS:
            getattr(self, name)[rows] = getattr(other, name)
        self.failures |= {int(rows[row]): why for row, why in other.failures.items()}
        merge(self.models, other.models)

    def better(self, other: Answers) -> None:
        """Take a fallback's answers for the rows that it was asked for."""
        self.fast = self.vectors[self.taken]
        self.put(self.taken, other, "vectors", "served_by")
        self.sheds[self.taken] = ""

    @classmethod
    def joined(cls, parts: list[Answers]) -> Answers:
        """Return the rows of all, one after the other."""
        if len(parts) == 1:
            return parts[0]
        found, start = cls(sum(len(part.vectors) for part in parts)), 0
        for part in parts:
            found.put(np.arange(start, start := start + len(part.vectors)), part)
        return found


Waits = Callable[[], Answers]


class Engine(Protocol):
    """Computes answers. Work begins with the call; what it returns waits for the answers.

    Attributes:
        models: The ids of models that are known before the first answer.
    """

    models: dict[str, str]

    def fast(self, windows: Windows) -> Waits:
        """Begin AMN's answers to contexts."""
        ...

    def slow(self, windows: Windows) -> Waits:
        """Begin the final answers of contexts that are chosen for a fallback."""
        ...


def chosen(answers: Answers, share: float) -> NDArray[np.intp]:
    """Return the rows of a block that a fallback answers too: the best by gain, at most a share of all.

    Equal gains go by confidence, the lowest first, then by row.
    """
    rows = np.flatnonzero(answers.candidates)
    order = np.lexsort((rows, answers.confidences[rows], -answers.gains[rows]))
    return np.sort(rows[order[: int(share * len(answers.vectors))]])


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueEngineSettings:
    """The settings of an engine behind a queue.

    Attributes:
        lane: Of the rows that are chosen for a fallback.
        priority: Of each request.
        stall_s: For so long without an answer the run waits; then it stops. None for ever.
    """

    lane: str = "general"
    priority: str = BULK_PRIORITY
    stall_s: float | None = None


class QueueEngine:
    """The workers of a service. A stall of them is waited for, and told."""

    def __init__(
        self, producer: Producer, settings: QueueEngineSettings, on_stall: Callable[[float, str], None]
    ) -> None:
        self._producer, self._settings, self._on_stall = producer, settings, on_stall
        self.models: dict[str, str] = {}
        # A lane that the policy always escalates would take the choice from the file.
        self._fast = Options(lane=LANES[0], priority=settings.priority)
        self._slow = replace(self._fast, lane=settings.lane, escalate=True)

    def fast(self, windows: Windows) -> Waits:
        """Send rows as messages of many contexts."""
        return self._begin(windows, self._fast)

    def slow(self, windows: Windows) -> Waits:
        """Send chosen rows as messages that a fallback answers."""
        return self._begin(windows, self._slow)

    def _begin(self, windows: Windows, options: Options) -> Waits:
        firsts = range(0, len(windows), MESSAGE_ROWS)
        parts = [windows.part(slice(first, first + MESSAGE_ROWS)) for first in firsts]
        handles = [self._submit(part, options) for part in parts]

        def wait() -> Answers:
            return Answers.joined(
                [self._answered(part, handle, options) for part, handle in zip(parts, handles, strict=True)]
            )

        return wait

    def _submit(self, windows: Windows, options: Options) -> BatchHandle:
        stalled_s: float | None = None
        while True:
            try:
                return self._producer.submit_batch(windows, options=options, block=True)
            except (ServerError, ResultTimeout) as error:
                stalled_s = self._stalled(stalled_s, error)

    def _answered(self, windows: Windows, handle: BatchHandle, options: Options) -> Answers:
        stalled_s: float | None = None
        while True:
            try:
                reply = handle.result(timeout_ms=_WAIT_MS)
                if not options.escalate or _by_fallback(reply):
                    return answers_of(reply)
                # Shed: the fallback is down, full, or behind. The file waits for it.
                stalled_s = self._stalled(stalled_s, f"no fallback answers ({_why(reply)})")
            except ResultTimeout as error:
                stalled_s = self._stalled(stalled_s, error)
                continue
            except (ServerError, RequestLost) as error:
                stalled_s = self._stalled(stalled_s, error)
            except QueueError as error:
                if len(windows) == 1:
                    return _failed(error)
                rows = [
                    windows.part(slice(i, i + 1)) for i in range(len(windows))
                ]  # alone, a bad one fails alone
                handles = [self._submit(row, options) for row in rows]
                return Answers.joined(
                    [self._answered(row, one, options) for row, one in zip(rows, handles, strict=True)]
                )
            handle = self._submit(windows, options)

    def _stalled(self, since_s: float | None, why: object) -> float:
        """Tell a stall and pause; returns when it began.

        Raises:
            RunStopped: It lasts for longer than the settings allow.
        """
        now_s = time.monotonic()
        since_s = since_s or now_s
        limit_s = self._settings.stall_s
        if limit_s is not None and now_s - since_s >= limit_s:
            raise RunStopped(
                f"no answers for {now_s - since_s:.0f} s: {why}; what is done stays, the same command goes on"
            )
        self._on_stall(now_s - since_s, str(why))
        time.sleep(_PAUSE_S)
        return since_s


def answered(
    engine: Engine, blocks: Iterable[RowBlock], share: float, normalize: bool
) -> Iterator[tuple[RowBlock, Answers]]:
    """Yield each block with its answers, in order.

    Some blocks are under way at once, so that neither the workers nor the disk wait for the other.

    Raises:
        FileRefused: A block cannot be read; those before it were yielded.
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
        second.append((block, answers, engine.slow(block.windows_of(answers.taken))))

    def finish() -> tuple[RowBlock, Answers]:
        block, answers, waits = second.popleft()
        answers.better(waits())
        return block, answers

    failed: FileRefused | None = None
    try:
        for block in blocks:
            block = checked(block, normalize)
            while len({block.group, *(one[0].group for one in (*first, *second))}) > _GROUPS:
                if not second:
                    choose()
                yield finish()
            rows = block.good
            first.append((block, rows, engine.fast(block.windows_of(rows))))
            if len(first) > _AHEAD:
                choose()
            if len(second) > _AHEAD:
                yield finish()
    except FileRefused as error:  # what was read before it is answered, and stays
        failed = error
    while first:
        choose()
    while second:
        yield finish()
    if failed is not None:
        raise failed


def _failed(error: QueueError) -> Answers:
    answers = Answers(1)
    answers.failures[0] = error.code, str(error)
    return answers


def answers_of(reply: BatchReply) -> Answers:
    """Return what the answer to a message says."""
    answers = Answers(len(reply), reply.vectors)
    answers.confidences, answers.margins, answers.gains = reply.confidences, reply.margins, reply.gains
    answers.candidates = reply.shed_as(_CHOICE)
    answers.served_by[:] = reply.served_by
    # Few combinations of rules fire: each is spelt once.
    _, firsts, kinds = np.unique(reply.fired, return_index=True, return_inverse=True)
    spelt = np.empty(len(firsts), object)
    for kind, row in enumerate(firsts.tolist()):
        spelt[kind] = reply.reasons(row)
    answers.reasons = spelt[kinds]
    answers.sheds[:] = np.array(["", *reply.sheds], object)[reply.shed]
    answers.models = {"model": reply.model, "bank": reply.bank, "policy": reply.policy}
    if reply.tiers:
        amn, *others = reply.tiers
        answers.models |= {"model": amn, "fallback": ", ".join(others), "calibration": reply.calibration}
        weights = np.stack([pair[:, 1] for pair in reply.tiers.values()])
        answers.served_by[weights[1:].sum(axis=0) <= 0] = "amn"  # the fallback was asked, and added nothing
    return answers


def _by_fallback(reply: BatchReply) -> bool:
    """True if a fallback was asked, whatever its answer was worth."""
    return bool(reply.tiers) and not reply.degraded


def _why(reply: BatchReply) -> str:
    sheds = {reply.sheds[code - 1] for code in reply.shed.tolist() if code}
    return reply.degraded or ", ".join(sorted(sheds)) or "answered by AMN"
