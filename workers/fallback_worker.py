"""The fallback worker's handler: the same loop with a slower model, for escalated requests."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from amn.predictor import Predictor
from producer import wire
from producer.errors import WireError
from producer.messages import NORM_TOLERANCE, Reply, Timings
from workers.batch import Batch, dead
from workers.queue import Entry, Outcome


class FallbackHandler:
    """Answers escalated requests; each entry carries the AMN answer as `answer`."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def handle(self, batch: Batch) -> list[Outcome]:
        """One model call for the batch; one outcome per request, in order."""
        started_s = time.perf_counter()
        rows = self._predictor.predict(batch.contexts)  # (B, 768)
        compute_ms = (time.perf_counter() - started_s) * 1000
        norms = np.sqrt(np.einsum("bd,bd->b", rows, rows))
        outcomes = []
        for b, request in enumerate(batch.requests):
            entry = batch.entries[b]
            fast = fast_answer(entry)
            if fast is None:
                outcomes.append(dead(entry, request, "undecodable", "escalated without its AMN answer"))
                continue
            if abs(norms[b] - 1) > NORM_TOLERANCE:
                outcomes.append(degraded(entry, request.reply_to, fast, "fallback_failed"))
                continue
            reply = replace(
                fast,
                vector=rows[b],
                served_by=self._predictor.name,
                model=self._predictor.model_id,
                provisional=False,
                timings=Timings(
                    queue_ms=batch.leased_at_ms - request.submitted_at_ms,
                    batch_ms=(started_s - batch.leased_at_s) * 1000,
                    compute_ms=compute_ms,
                    batch_size=len(batch),
                ),
            )
            outcomes.append(_answered(entry, request.reply_to, reply))
        return outcomes


def fast_answer(entry: Entry) -> Reply | None:
    """The AMN answer that an escalated entry carries."""
    try:
        reply = wire.decode_reply(entry.fields.get(b"answer", b""))
    except WireError:
        return None
    return reply if isinstance(reply, Reply) else None


def degraded(entry: Entry, reply_to: str, fast: Reply, why: str) -> Outcome:
    """Ends an escalated entry with its AMN answer, marked with the reason."""
    outcome = _answered(entry, reply_to, replace(fast, provisional=False, degraded=why))
    outcome.counters += f",degraded,degraded:{why}"
    return outcome


def _answered(entry: Entry, reply_to: str, reply: Reply) -> Outcome:
    return Outcome(
        entry=entry,
        op="reply",
        reply_to=reply_to,
        payload=wire.encode_reply(reply),
        counters=f"answered,answered:{reply.served_by}",
    )
