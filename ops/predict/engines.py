"""The engines that compute the answers of a block: workers behind a queue, or models in this process.

Both give AMN's answer to every row with its scores, and the final answer of the rows that are chosen for a
fallback. What is chosen depends on the rows of a block alone (`chosen`), so that a file has the same answers
whoever computes them, and however often.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from amn.errors import FileRefused
from ops.errors import RunStopped
from ops.predict.answers import Answers, answers_of
from ops.predict.settings import PredictSettings
from ops.predict.windows import RowBlock, checked
from producer import BatchHandle, Options, Producer, Windows
from producer.errors import (
    AuthenticationFailed,
    QueueError,
    RequestLost,
    ResultTimeout,
    ServerError,
    TlsFailed,
    UnknownEncoder,
)
from producer.messages import LANES, BatchReply

#: Contexts of one message.
MESSAGE_ROWS = 256
_WAIT_MS, _PAUSE_S = 2_000.0, 0.5
#: Blocks under way at once, before and after their rows are chosen: those wait behind what is sent meanwhile.
_AHEAD, _CHOSEN_AHEAD = 3, 8
#: Row groups that they are of: so much is repeated of a run that is broken off.
_GROUPS = 2
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

    Rows without an answer do not count: they add nothing to the escalation budget. Equal
    gains go by confidence, the lowest first, then by row.
    """
    most = int(share * (len(answers.vectors) - len(answers.failures)))
    rows = np.flatnonzero(answers.candidates)
    order = np.lexsort((rows, answers.confidences[rows], -answers.gains[rows]))
    return np.sort(rows[order[:most]])


class QueueEngine:
    """The workers of a service. A stall of them is waited for, and told."""

    def __init__(
        self, producer: Producer, settings: PredictSettings, on_stall: Callable[[float, str], None]
    ) -> None:
        self._producer, self._stall_s, self._on_stall = producer, settings.stall_s or math.inf, on_stall
        self.models: dict[str, str] = {}
        # A lane that the policy always escalates would take the choice from the file.
        self._fast = Options(lane=LANES[0], priority=settings.priority)
        self._slow = replace(self._fast, lane=settings.lane, escalate=True)
        # Workers of an earlier version drop messages whose contexts share vectors, and can tell nobody.
        # A pool may have both for long: twice the bytes cost less than half a minute for each lost message.
        self._shares = True

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
                contexts = windows if self._shares else windows.contexts()
                return self._producer.submit_batch(contexts, options=options, block=True)
            except (ServerError, ResultTimeout) as error:
                stalled_s = self._stalled(stalled_s, error)

    def _answered(self, windows: Windows, handle: BatchHandle, options: Options) -> Answers:
        stalled_s: float | None = None
        while True:
            try:
                reply = handle.result(timeout_ms=_WAIT_MS)
                if not options.escalate or (reply.tiers and not reply.degraded):
                    return answers_of(reply)
                # Shed: the fallback is down, full, or behind. The file waits for it.
                stalled_s = self._stalled(stalled_s, f"no fallback answers ({_why(reply)})")
            except ResultTimeout as error:
                stalled_s = self._stalled(stalled_s, error)
                continue
            except (ServerError, RequestLost) as error:
                self._shares &= not isinstance(error, RequestLost)
                stalled_s = self._stalled(stalled_s, error)
            except UnknownEncoder as error:  # no row has an answer, now or later
                raise RunStopped(
                    f"{error}; for a file, its encoder is in its metadata or --encoder"
                ) from error
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
            RunStopped: It lasts for longer than the settings allow, or no waiting ends it.
        """
        if isinstance(why, AuthenticationFailed | TlsFailed):
            raise RunStopped(f"{why}; what is done stays, the same command goes on") from why
        now_s = time.monotonic()
        since_s = since_s or now_s
        if now_s - since_s >= self._stall_s:
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
    under_way: deque[_UnderWay] = deque()
    failed: FileRefused | None = None
    try:
        for block in blocks:
            block = checked(block, normalize)
            while len({block.group, *(one.block.group for one in under_way)}) > _GROUPS:
                yield under_way.popleft().finish()
            under_way.append(_UnderWay(engine, block, share))
            if len(under_way) > _AHEAD:
                under_way[-1 - _AHEAD].choose()
            if len(under_way) > _AHEAD + _CHOSEN_AHEAD:
                yield under_way.popleft().finish()
    except FileRefused as error:  # what was read before it is answered, and stays
        failed = error
    for one in under_way:
        one.choose()
    while under_way:
        yield under_way.popleft().finish()
    if failed is not None:
        raise failed


class _UnderWay:
    """A block whose answers are asked for: first AMN's to all rows, then a fallback's to those chosen."""

    def __init__(self, engine: Engine, block: RowBlock, share: float) -> None:
        self.block, self._engine, self._share = block, engine, share
        self._rows = block.good
        self._waits = engine.fast(block.windows_of(self._rows))
        self._answers: Answers | None = None

    def choose(self) -> Answers:
        """Wait for AMN's answers and ask for those of a fallback, once; returns the first."""
        if self._answers is None:
            answers, block = self._waits(), self.block
            if len(self._rows) < len(block):
                some, answers = answers, Answers(len(block))
                answers.put(self._rows, some)
            answers.failures |= block.errors
            answers.taken = chosen(answers, self._share)
            # The replies of the first answers are let go here: they would be most of the memory.
            self._waits = self._engine.slow(block.windows_of(answers.taken))
            self._answers = answers
        return self._answers

    def finish(self) -> tuple[RowBlock, Answers]:
        """Wait for all answers."""
        answers = self.choose()
        answers.better(self._waits())
        return self.block, answers


def _failed(error: QueueError) -> Answers:
    answers = Answers(1)
    answers.failures[0] = error.code, str(error)
    return answers


def _why(reply: BatchReply) -> str:
    sheds = {reply.sheds[code - 1] for code in reply.shed.tolist() if code}
    return reply.degraded or ", ".join(sorted(sheds)) or "answered by AMN"
