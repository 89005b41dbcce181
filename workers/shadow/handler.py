"""The shadow worker's handler: from sampled traffic to halves that can be scored.

A shadow entry is a prediction (a request with the AMN answer to it) or a truth (the vector that
really came next). Truths need no model and are ended by `assemble`; predictions pass through the
handler, which runs the fallback on them, so that the two models are compared on the same requests.
Producers report truths on a stream of their own; a prediction there is forged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amn.predictor import Predictor
from amn.slices import Slicer
from producer.errors import Undecodable, WireError
from producer.messages import BULK_PRIORITY, CONTEXT_SHAPE, BatchReply, Reply, Request
from producer.protocol import wire
from producer.protocol.checks import are_unit
from producer.sampling import ONE_IN_MAX, ONE_IN_MIN, sampled
from workers.engine.entry import Entry, Outcome
from workers.engine.microbatch import MicroBatch
from workers.engine.outcomes import WORKER_DIED
from workers.settings import WorkerSettings
from workers.shadow.queue import HalfOutcome
from workers.shadow.scores import Arrival, Labels, arrivals, prediction_half, truth_half
from workers.shadow.settings import FILES_LANE, SLOW_MS, ShadowSettings


class ShadowHandler:
    """Makes halves of shadow entries. Use its `assemble` as the loop's.

    Args:
        shadow: Settings.
        fallback: The slower model, run on every sampled request.
        slicer: Slices requests that name no domain; without one they are in slice "unknown".
        default_weight: Of an entry that does not say at which rate it was taken.
    """

    def __init__(
        self,
        shadow: ShadowSettings | None = None,
        fallback: Predictor | None = None,
        slicer: Slicer | None = None,
        default_weight: int = ONE_IN_MIN,
    ) -> None:
        self._shadow = shadow or ShadowSettings()
        self._fallback = fallback
        self._slicer = slicer
        self._default_weight = default_weight

    def assemble(
        self, entries: Sequence[Entry], settings: WorkerSettings, leased_at_ms: float, leased_at_s: float
    ) -> MicroBatch:
        """Decodes entries; predictions become rows, everything else ends without a model."""
        buffer = np.empty((len(entries), *CONTEXT_SHAPE), dtype=np.float32)
        batch = MicroBatch([], [], buffer, leased_at_ms, leased_at_s)
        for entry in entries:
            kind = entry.fields.get(b"kind")
            try:
                if entry.deliveries > settings.queue.deliveries_max:
                    batch.refused.append(dropped(entry, WORKER_DIED))
                elif kind == b"truth":
                    batch.refused.append(_truth(entry, settings))
                elif kind == b"prediction" and entry.place == 0:
                    request = wire.decode_request(entry.fields.get(b"request", b""), batches=True)
                    if request.count > 1:
                        raise Undecodable(f"shadow entry of {request.count} contexts; one is sampled")
                    buffer[len(batch.requests)] = request.context
                    batch.entries.append(entry)
                    batch.requests.append(request)
                else:
                    raise Undecodable(f"shadow entry of kind {kind!r} here; known: prediction, truth")
            except WireError as error:
                batch.refused.append(dropped(entry, error.code))
        batch.contexts = buffer[: len(batch.requests)]
        return batch

    def handle(self, batch: MicroBatch) -> list[Outcome]:
        """One call of the fallback for all; one outcome per prediction, in order."""
        fallbacks = None if self._fallback is None else self._fallback.predict(batch.contexts)
        return [
            self._prediction(batch, b, None if fallbacks is None else fallbacks[b]) for b in range(len(batch))
        ]

    def _prediction(self, batch: MicroBatch, b: int, fallback: NDArray[np.float32] | None) -> Outcome:
        entry, request = batch.entries[b], batch.requests[b]
        try:
            key, weight = _key(entry), self._weight(entry)
            reply = wire.decode_reply(entry.fields.get(b"answer", b""))
        except WireError as error:
            return dropped(entry, error.code)
        if isinstance(reply, BatchReply):
            reply = reply.single()
        if not isinstance(reply, Reply):
            return dropped(entry, "unanswered")
        if not (are_unit(batch.contexts[b]).all() and are_unit(reply.vector)):
            return dropped(entry, "bad_norm")
        arrival, slice_ = self._arrival(weight, request, batch.contexts[b], reply)
        labels = Labels(reply.model, FILES_LANE if request.batched else request.lane, slice_)
        sound = fallback if fallback is not None and are_unit(fallback) else None
        half = prediction_half(entry.id, labels, batch.contexts[b], reply.vector, sound, arrival)
        pairs = arrivals(half, labels, arrival)
        return HalfOutcome(entry=entry, op="prediction", sample_key=key, half=half, pairs=pairs)

    def _weight(self, entry: Entry) -> int:
        """k of the rate 1/k at which it was taken."""
        text = entry.fields.get(b"one_in", b"0")
        if not text.isdigit() or int(text) > ONE_IN_MAX:
            raise Undecodable(f"shadow entry with one_in {text!r}; expected 1 to {ONE_IN_MAX}")
        return int(text) or self._default_weight

    def _arrival(
        self, weight: int, request: Request, context: NDArray[np.float32], reply: Reply
    ) -> tuple[Arrival, str]:
        """Facts that need no truth, and the slice: the explicit domain's, else the score's."""
        slice_, ood, cell = self._shadow.slice_of(request.domain), None, 0
        if self._slicer is not None:
            found = self._slicer.measure(context)
            ood, cell = found.score, found.cell
            slice_ = slice_ if request.domain else self._slicer.slice_of(ood)
        took = reply.timings
        slow = took.queue_ms + took.batch_ms + took.compute_ms > SLOW_MS
        arrival = Arrival(
            weight=weight,
            slow=slow and request.priority != BULK_PRIORITY and not request.batched,
            reference=reply.confidence if reply.bank and reply.confidence_method != "none" else None,
            ood=ood,
            cell=cell,
        )
        return arrival, slice_


def dropped(entry: Entry, reason: str) -> Outcome:
    """Ends an entry that cannot be scored; counted as `shadow:<reason>`."""
    return Outcome(entry=entry, op="drop", reason=reason)


def _truth(entry: Entry, settings: WorkerSettings) -> Outcome:
    key = _key(entry)
    # Producers send the truths of all that could be sampled at the highest rate; at a lower rate
    # most of them have no prediction, and would only fill the waiting room.
    if not sampled(key, settings.sample_rate, settings.sample_salt):
        return dropped(entry, "unsampled")
    vector = wire.decode_vector(entry.fields.get(b"vector", b""))
    if not are_unit(vector):
        return dropped(entry, "bad_norm")
    return HalfOutcome(entry=entry, op="truth", sample_key=key, half=truth_half(vector))


def _key(entry: Entry) -> str:
    try:
        key = entry.fields.get(b"key", b"").decode()
    except UnicodeDecodeError as error:
        raise Undecodable(f"shadow entry's key is not UTF-8: {error}") from error
    if not key:
        raise Undecodable("shadow entry without a key")
    return key
