"""From leased entries to one buffer of contexts; what cannot be served ends here, alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from producer import errors, wire
from producer.errors import QueueError, WireError
from producer.messages import CONTEXT_SHAPE, NORM_TOLERANCE, Request
from workers.outcomes import dead, failure
from workers.queue import Entry, Outcome
from workers.settings import WorkerSettings

_SQUARE_MIN, _SQUARE_MAX = (1 - NORM_TOLERANCE) ** 2, (1 + NORM_TOLERANCE) ** 2


@dataclass(slots=True)
class Batch:
    """Requests to be answered together.

    Attributes:
        entries, requests: One each per row.
        contexts: Shape (B, 5, 768), float32; row b belongs to `requests[b]`.
        leased_at_ms: Worker's UTC clock at the read.
        leased_at_s: Monotonic clock at the read.
        refused: Entries that ended before the model saw them.
    """

    entries: list[Entry]
    requests: list[Request]
    contexts: NDArray[np.float32]
    leased_at_ms: float
    leased_at_s: float
    refused: list[Outcome] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.requests)

    def part(self, start: int, stop: int) -> Batch:
        """Rows start..stop, for bisecting; nothing refused goes along."""
        return Batch(
            self.entries[start:stop],
            self.requests[start:stop],
            self.contexts[start:stop],
            self.leased_at_ms,
            self.leased_at_s,
        )


def assemble(
    entries: Sequence[Entry], settings: WorkerSettings, leased_at_ms: float, leased_at_s: float
) -> Batch:
    """Decodes entries into one buffer, and refuses what breaks the contract.

    Undecodable, wrong-version and over-delivered entries become dead letters; a wrong encoder,
    lane, norm or a passed deadline becomes a named failure. The others are not affected.
    """
    buffer = np.empty((len(entries), *CONTEXT_SHAPE), dtype=np.float32)
    batch = Batch([], [], buffer, leased_at_ms, leased_at_s)
    for entry in entries:
        try:
            request = wire.decode_request(entry.fields.get(b"request", b""))
        except WireError as error:
            batch.refused.append(dead(entry, None, error.code, str(error)))
            continue
        if entry.deliveries > settings.queue.deliveries_max:
            text = f"delivered {entry.deliveries - 1} times without an end"
            batch.refused.append(dead(entry, request, "over_delivered", text))
            continue
        refused = refusal(request, settings, leased_at_ms)
        if refused is not None:
            batch.refused.append(failure(entry, request, refused))
            continue
        buffer[len(batch.requests)] = request.context  # the one copy, float16 widened on the way
        batch.entries.append(entry)
        batch.requests.append(request)
    batch.contexts = buffer[: len(batch.requests)]
    return _without_bad_rows(batch)


def refusal(request: Request, settings: WorkerSettings, now_ms: float) -> QueueError | None:
    """Why this request is not served, or None."""
    if request.expires_at_ms and now_ms > request.expires_at_ms:
        late_ms = now_ms - request.expires_at_ms
        return errors.DeadlineExceeded(f"request {request.id} was read {late_ms:.1f} ms after its deadline")
    if request.encoder != settings.encoder:
        return errors.UnknownEncoder(
            f"vectors of encoder {request.encoder!r}; this service was trained on {settings.encoder!r}"
        )
    if request.lane not in settings.lanes:
        return errors.UnknownLane(f"lane {request.lane!r} is not served; known: {', '.join(settings.lanes)}")
    return None


def _without_bad_rows(batch: Batch) -> Batch:
    """Checks finiteness and norms of the whole buffer at once, and drops the rows that fail."""
    contexts = batch.contexts
    squares = np.vecdot(contexts, contexts)  # (B, 5); NaN and infinity fail both comparisons
    good = ((squares >= _SQUARE_MIN) & (squares <= _SQUARE_MAX)).all(axis=1)
    if good.all():
        return batch
    for row in np.flatnonzero(~good):
        request = batch.requests[row]
        problem: QueueError
        if np.isfinite(squares[row]).all():
            worst = float(np.sqrt(squares[row])[np.abs(np.sqrt(squares[row]) - 1).argmax()])
            problem = errors.BadNorm(
                f"a context vector has norm {worst:.6g}; it must be 1 +- {NORM_TOLERANCE:g}"
            )
        else:
            problem = errors.NotFinite("the context holds NaN or infinity; check the encoder's output")
        batch.refused.append(failure(batch.entries[row], request, problem))
    keep = np.flatnonzero(good)
    batch.entries = [batch.entries[i] for i in keep]
    batch.requests = [batch.requests[i] for i in keep]
    batch.contexts = np.ascontiguousarray(contexts[keep])
    return batch
