"""From leased entries to one buffer of contexts; what cannot be served ends here, alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from producer import errors
from producer.errors import QueueError, WireError
from producer.messages import BATCH_CONTEXTS_MAX, CONTEXT_SHAPE, NORM_TOLERANCE, Request
from producer.protocol import wire
from producer.protocol.peek import contexts_in
from workers.engine.entry import Entry, Outcome
from workers.engine.outcomes import begun_too_often, failure, unreadable
from workers.settings import WorkerSettings

#: Payload and contexts of one micro-batch: 256 single float32 contexts, or one message that is full.
PORTION_BYTES, PORTION_ROWS = 4 * 1024**2, BATCH_CONTEXTS_MAX
_NONE = np.empty((0, *CONTEXT_SHAPE), dtype=np.float32)
_SQUARE_MIN, _SQUARE_MAX = (1 - NORM_TOLERANCE) ** 2, (1 + NORM_TOLERANCE) ** 2


@dataclass(slots=True)
class MicroBatch:
    """Requests to be answered together.

    Attributes:
        entries, requests: One each per request.
        contexts: Shape (B, 5, 768), float32, perhaps read-only; `rows(i)` are those of `requests[i]`.
        leased_at_ms: Server's clock at the read, UTC epoch milliseconds.
        leased_at_s: Monotonic clock at the read.
        refused: Entries that ended before the model saw them.
        starts: First row of each request, and B; empty when each has one row.
        started_s, predicted_s: Monotonic clock at the start of the model, and at that of the gate;
            0 until the handler says so.
        between: To be called after each few rows, where they are to be computed piece by piece.
    """

    entries: list[Entry]
    requests: list[Request]
    contexts: NDArray[np.float32]
    leased_at_ms: float
    leased_at_s: float
    refused: list[Outcome] = field(default_factory=list)
    starts: Sequence[int] = ()
    started_s: float = 0.0
    predicted_s: float = 0.0
    between: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self.requests)

    def rows(self, i: int) -> slice:
        """The rows of `contexts` that belong to request i."""
        return slice(self.starts[i], self.starts[i + 1]) if self.starts else slice(i, i + 1)

    def part(self, start: int, stop: int) -> MicroBatch:
        """Requests start..stop, for bisecting; nothing refused goes along."""
        starts = self.starts[start : stop + 1]
        first, last = (starts[0], starts[-1]) if starts else (start, stop)
        return MicroBatch(
            self.entries[start:stop],
            self.requests[start:stop],
            self.contexts[first:last],
            self.leased_at_ms,
            self.leased_at_s,
            starts=[row - first for row in starts],
        )


def assemble(
    entries: Sequence[Entry], settings: WorkerSettings, leased_at_ms: float, leased_at_s: float
) -> MicroBatch:
    """Decodes entries into one buffer, and refuses what breaks the contract.

    A message that cannot be decoded, a wrong version, encoder, lane or norm, and a passed deadline become
    named failures; those begun too often, or with nobody to tell, dead letters. The others are not affected.
    """
    batch = MicroBatch([], [], _NONE, leased_at_ms, leased_at_s)
    for entry in entries:
        if entry.deliveries > settings.queue.deliveries_max:  # before anything in it is looked at
            batch.refused.append(begun_too_often(entry, settings.queue.deliveries_max))
            continue
        try:
            request = wire.decode_request(entry.fields.get(b"request", b""), batches=True)
        except WireError as error:
            batch.refused.append(unreadable(entry, error))
            continue
        late = request.expires_at_ms and leased_at_ms > request.expires_at_ms
        if late or request.encoder != settings.encoder or request.lane not in settings.lanes:
            batch.refused.append(failure(entry, request, refusal(request, settings, leased_at_ms)))
            continue
        batch.entries.append(entry)
        batch.requests.append(request)
    _fill(batch)
    squares = np.vecdot(batch.contexts, batch.contexts)  # (B, 5); NaN fails both comparisons
    # `min` and `max` would do the same, NaN included, in three times the time.
    if len(squares) and not (
        squares.item(squares.argmin()) >= _SQUARE_MIN and squares.item(squares.argmax()) <= _SQUARE_MAX
    ):
        _refuse_bad_rows(batch, squares)
    return batch


def portion(entries: Sequence[Entry]) -> int:
    """Counts the first entries that make one micro-batch: `PORTION_ROWS` and `PORTION_BYTES`, at least one.

    So what comes behind a large message does not wait for more than one or two of its kind, and
    nothing is copied that does not fit.
    """
    left_bytes, left_rows = PORTION_BYTES, PORTION_ROWS
    for count, entry in enumerate(entries):
        payload = entry.fields.get(b"request", b"")
        left_bytes -= len(payload)
        left_rows -= contexts_in(payload)
        if (left_bytes < 0 or left_rows < 0) and count:
            return count
    return len(entries)


def _fill(batch: MicroBatch) -> None:
    """Makes the one copy of the contexts, float16 widened on the way; a lone float32 message needs none."""
    requests = batch.requests
    batch.starts = ()
    if any(request.context.ndim == 3 for request in requests):
        batch.starts = list(accumulate([request.count for request in requests], initial=0))
    if len(requests) == 1 and requests[0].context.dtype == np.float32:
        batch.contexts = requests[0].context.reshape(-1, *CONTEXT_SHAPE)
        return
    rows = batch.starts[-1] if batch.starts else len(requests)
    batch.contexts = np.empty((rows, *CONTEXT_SHAPE), dtype=np.float32)
    for i, request in enumerate(requests):
        context = request.context
        if context.dtype.itemsize == 2:
            _widen(batch.contexts[batch.rows(i)], context.reshape(-1, *CONTEXT_SHAPE))
        else:
            batch.contexts[batch.rows(i)] = context


def _widen(rows: NDArray[np.float32], context: NDArray[np.floating]) -> None:
    """float16 -> float32 by torch: NumPy takes twenty times as long."""
    import torch

    from amn.model.folded import shared

    torch.from_numpy(rows).copy_(shared(context))


def refusal(request: Request, settings: WorkerSettings, now_ms: float) -> QueueError:
    """The reason why this request is not served: its deadline, its encoder or its lane."""
    if request.expires_at_ms and now_ms > request.expires_at_ms:
        late_ms = now_ms - request.expires_at_ms
        return errors.DeadlineExceeded(f"request {request.id} was read {late_ms:.1f} ms after its deadline")
    if request.encoder != settings.encoder:
        return errors.UnknownEncoder(
            f"vectors of encoder {request.encoder!r}; this service was trained on {settings.encoder!r}; "
            "a client names the encoder of its vectors as AMN_ENCODER"
        )
    return errors.UnknownLane(f"lane {request.lane!r} is not served; known: {', '.join(settings.lanes)}")


def _refuse_bad_rows(batch: MicroBatch, squares: NDArray[np.float32]) -> None:
    """Drops the requests with a vector that is not finite or not of unit norm; `squares` is (B, 5)."""
    good = (squares.min(axis=1) >= _SQUARE_MIN) & (squares.max(axis=1) <= _SQUARE_MAX)
    kept = []
    for i, request in enumerate(batch.requests):
        bad = np.flatnonzero(~good[batch.rows(i)])
        if len(bad):
            where = f"contexts[{bad[0]}]: " if request.batched else ""
            problem = _problem(squares[batch.rows(i)][bad[0]], where)
            batch.refused.append(failure(batch.entries[i], request, problem))
        else:
            kept.append(i)
    batch.entries, batch.requests = [batch.entries[i] for i in kept], [batch.requests[i] for i in kept]
    _fill(batch)


def _problem(squares: NDArray[np.float32], where: str) -> QueueError:
    """The error for a context whose vectors have these squared norms (5,)."""
    if not np.isfinite(squares).all():
        return errors.NotFinite(f"{where}the context holds NaN or infinity; check the encoder's output")
    norms = np.sqrt(squares)
    worst = float(norms[np.abs(norms - 1).argmax()])
    return errors.BadNorm(f"{where}a context vector has norm {worst:.6g}; it must be 1 +- {NORM_TOLERANCE:g}")
