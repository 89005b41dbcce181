"""The answers of a run: one slot per request, filled as they arrive."""

from __future__ import annotations

from collections import Counter

import numpy as np

from ops.sample import Sample
from producer import Handle
from producer.errors import QueueError

#: Counters by name: reasons of escalations; why flagged requests stayed at AMN; why escalated ones got their
#: AMN answer after all; answers by model; failures by code.
_COUNTS = ("reasons", "shed", "degraded", "served", "codes")


class RunRecord:
    """Collects finished handles; keeps numbers, never vectors, so that a long run needs little.

    Attributes:
        answered, failed: Requests with a final answer, with a named failure.
        escalated: Shape (N,): a fallback was asked.
        amn_ms, fallback_ms: Shape (N,): from enqueue to the arrival of the AMN answer (final or
            provisional), and of the fallback's; NaN where there is none.
        cosine_amn, cosine_fallback, cosine_final: Shape (N,): to the true next vector, or NaN.
        send_lag_ms: Shape (N,): how late each request was sent, against its due time.
        elapsed_s: From the first submit to the last answer.
        counts: Counters by name, for each of `_COUNTS`.
    """

    def __init__(self, sample: Sample, requests: int) -> None:
        self._sample = sample
        self.requests = requests
        self.answered = self.failed = 0
        self.elapsed_s = 0.0
        self.escalated = np.zeros(requests, dtype=bool)
        self.send_lag_ms = np.zeros(requests, dtype=np.float32)
        empty = np.full((5, requests), np.nan, dtype=np.float32)
        self.amn_ms, self.fallback_ms = empty[0], empty[1]
        self.cosine_amn, self.cosine_fallback, self.cosine_final = empty[2], empty[3], empty[4]
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in _COUNTS}

    @property
    def ended(self) -> int:
        """Requests that wait for nothing any more."""
        return self.answered + self.failed

    def collect(self, i: int, handle: Handle) -> None:
        """Takes the outcome of request `i`, whose handle is done."""
        try:
            final = handle.result(0)
        except QueueError as error:
            self.fail(error.code)
            return
        self.answered += 1
        self.counts["served"][final.served_by] += 1
        truth = self._sample.truth(i)
        self.cosine_final[i] = cosine = float(final.vector @ truth)
        if not final.reasons or final.shed:
            self.counts["shed"][final.shed] += 1
            self.amn_ms[i], self.cosine_amn[i] = handle.latency_ms, cosine
            return
        self.escalated[i] = True
        self.counts["reasons"].update(final.reasons)
        self.counts["degraded"][final.degraded] += 1
        if final.served_by != "amn":
            self.fallback_ms[i], self.cosine_fallback[i] = handle.latency_ms, cosine
        first = handle.first(0)
        if first.served_by == "amn":  # else the final answer overtook the provisional one
            self.amn_ms[i], self.cosine_amn[i] = handle.first_latency_ms, float(first.vector @ truth)

    def fail(self, code: str, count: int = 1) -> None:
        """Counts requests that ended, or were given up, without an answer."""
        self.failed += count
        self.counts["codes"][code] += count

    def named(self, name: str) -> dict[str, int]:
        """Counts with a name, the most frequent first."""
        return {one: count for one, count in self.counts[name].most_common() if one and count}
