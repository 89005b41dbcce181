"""The answers of a run: one slot per request, filled as they arrive."""

from __future__ import annotations

from collections import Counter

import numpy as np

from ops.sample import Sample
from producer import Handle
from producer.errors import QueueError


class RunTally:
    """Collects finished handles; keeps numbers, never vectors, so that a long run needs little.

    Attributes:
        answered, failed: Requests with a final answer, with a named failure.
        escalated: Shape (N,): a fallback was asked.
        amn_ms, fallback_ms: Shape (N,): from enqueue to the arrival of the AMN answer (final or
            provisional), and of the fallback's; NaN where there is none.
        cosine_amn, cosine_fallback, cosine_final: Shape (N,): to the true next vector, or NaN.
        reasons: Of escalated requests.    shed, degraded, served, codes: Counts by name.
    """

    def __init__(self, sample: Sample, requests: int) -> None:
        self._sample = sample
        self.requests = requests
        self.answered = 0
        self.failed = 0
        self.escalated = np.zeros(requests, dtype=bool)
        empty = np.full((5, requests), np.nan, dtype=np.float32)
        self.amn_ms, self.fallback_ms = empty[0], empty[1]
        self.cosine_amn, self.cosine_fallback, self.cosine_final = empty[2], empty[3], empty[4]
        self.reasons: Counter[str] = Counter()
        self.shed: Counter[str] = Counter()
        self.degraded: Counter[str] = Counter()
        self.served: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()

    def collect(self, i: int, handle: Handle) -> None:
        """Takes the outcome of request `i`, whose handle is done."""
        try:
            final = handle.result(0)
        except QueueError as error:
            self.fail(error.code)
            return
        self.answered += 1
        self.served[final.served_by] += 1
        truth = self._sample.truth(i)
        cosine = float(final.vector @ truth)
        self.cosine_final[i] = cosine
        if not final.reasons or final.shed:
            self.shed[final.shed] += bool(final.shed)
            self.amn_ms[i] = _ms(handle.latency_ms)
            self.cosine_amn[i] = cosine
            return
        self.escalated[i] = True
        self.reasons.update(final.reasons)
        self.degraded[final.degraded] += bool(final.degraded)
        if final.served_by != "amn":
            self.fallback_ms[i] = _ms(handle.latency_ms)
            self.cosine_fallback[i] = cosine
        first = handle.first(0)
        if first.served_by == "amn":  # else the final answer overtook the provisional one
            self.amn_ms[i] = _ms(handle.first_latency_ms)
            self.cosine_amn[i] = float(first.vector @ truth)

    def fail(self, code: str) -> None:
        """Counts a request that ended, or was given up, without an answer."""
        self.failed += 1
        self.codes[code] += 1


def _ms(value: float | None) -> float:
    return float("nan") if value is None else value
