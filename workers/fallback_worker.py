"""The fallback worker's handler: the same loop with a slower model, for escalated requests."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from producer.messages import NORM_TOLERANCE, Timings
from workers.batch import Batch
from workers.outcomes import answered, dead, degraded, fast_answer
from workers.queue import Outcome

if TYPE_CHECKING:  # the model's libraries are loaded by whoever builds the predictor
    from amn.predictor import Predictor


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
            outcomes.append(answered(entry, request.reply_to, reply))
        return outcomes
