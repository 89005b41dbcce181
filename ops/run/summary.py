"""The result of `amn run`: one frozen value, as JSON for scripts and as tables for people."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.run.tally import RunTally
from ops.run.traffic import Timing
from ops.sample import Sample
from ops.settings import cores

#: The card's objectives.
LATENCY_MS_P95_MAX = 1.2
FALLBACK_RATE_MAX = 0.20
_PERCENTILES = {"p50": 50, "p95": 95, "p99": 99}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One finished run; the fields are the keys of `amn run --json`, in this order.

    Attributes:
        answered: With exactly one final answer.    failed: With a named failure, or none within 30 s.
        latency_ms: Of AMN answers, provisional ones of escalated requests included, from enqueue
            to received, both on the producer's monotonic clock.
        throughput_per_s: Answers per second, from the first submit to the last answer.
        cosine: Mean cosine to the true next vectors: of AMN and of the fallback where they
            answered, of the final answers, and of the two baselines on all requests.
        ood_delta: Mean cosine of AMN on the unseen domain minus that on the known ones.
        duplicates: Final answers that came a second time, or to nobody.
        lost_leases: Finishes refused because another worker held the request by then.
        shed: Flagged requests that AMN answered all the same, by why.
        degraded: Escalated requests that got their AMN answer after all, by why.
        send_lag_ms: How late requests left, against the open-loop schedule.
        objectives: Whether the card's numbers held.
    """

    requests: int
    answered: int
    failed: int
    escalated: int
    shadowed: int
    latency_ms: dict[str, float | None]
    latency_ms_fallback: dict[str, float | None]
    throughput_per_s: float
    reasons: dict[str, int]
    cosine: dict[str, float | None]
    fallback_rate: float
    ood_delta: float | None
    duplicates: int
    lost_leases: int
    shed: dict[str, int]
    degraded: dict[str, int]
    failures: dict[str, int]
    send_lag_ms: dict[str, float | None]
    warm_up: int
    worker_restarts: int
    objectives: dict[str, bool]
    environment: dict[str, Any]

    @property
    def exactly_once(self) -> bool:
        """Says whether every request got one final answer, and none a second."""
        return self.answered == self.requests and not self.failed and not self.duplicates

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the order of the fields."""
        return {name: getattr(self, name) for name in self.__slots__}


def summarize(tally: RunTally, sample: Sample, timing: Timing, **around: Any) -> RunSummary:
    """Turns what was collected into the summary; `around` gives the fields that the answers do not tell."""
    latency = percentiles(tally.amn_ms)
    fallback_rate = float(tally.escalated.sum()) / tally.requests
    mean_baseline, last_baseline = sample.baselines(tally.requests)
    p95 = latency["p95"]
    return RunSummary(
        requests=tally.requests,
        answered=tally.answered,
        failed=tally.failed,
        escalated=int(tally.escalated.sum()),
        latency_ms=latency,
        latency_ms_fallback=percentiles(tally.fallback_ms),
        throughput_per_s=round(tally.answered / max(timing.elapsed_s, 1e-9), 1),
        reasons=dict(tally.reasons.most_common()),
        cosine={
            "amn": mean(tally.cosine_amn),
            "fallback": mean(tally.cosine_fallback),
            "final": mean(tally.cosine_final),
            "context_mean": round(mean_baseline, 4),
            "last_vector": round(last_baseline, 4),
        },
        fallback_rate=round(fallback_rate, 4),
        ood_delta=ood_delta(tally, sample),
        shed=_named(tally.shed),
        degraded=_named(tally.degraded),
        failures=_named(tally.codes),
        send_lag_ms=percentiles(timing.send_lag_ms),
        objectives={
            "latency_ms_p95": p95 is not None and p95 <= LATENCY_MS_P95_MAX,
            "fallback_rate": fallback_rate <= FALLBACK_RATE_MAX,
        },
        **around,
    )


def ood_delta(tally: RunTally, sample: Sample) -> float | None:
    """Mean AMN cosine on the unseen domain minus that on the known ones; None without both."""
    ood = np.array([sample.ood[sample.window(i)] for i in range(tally.requests)])
    outside, inside = mean(tally.cosine_amn[ood]), mean(tally.cosine_amn[~ood])
    return None if outside is None or inside is None else round(outside - inside, 4)


def percentiles(values: NDArray[np.float32]) -> dict[str, float | None]:
    """p50, p95 and p99 of what is not NaN; None for each when nothing is."""
    present = values[~np.isnan(values)]
    if not len(present):
        return dict.fromkeys(_PERCENTILES)
    return {name: round(float(np.percentile(present, q)), 3) for name, q in _PERCENTILES.items()}


def mean(values: NDArray[np.float32]) -> float | None:
    """Mean of what is not NaN, or None."""
    present = values[~np.isnan(values)]
    return round(float(present.mean(dtype=np.float64)), 4) if len(present) else None


def environment(server: str, workers: dict[str, int], rate: float) -> dict[str, Any]:
    """Returns the facts that a reader must know to compare two runs."""
    return {
        "server": server,
        "workers": workers,
        "rate_per_s": rate,
        "cores": cores(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "clock": "producer's perf_counter, enqueue to received",
    }


def _named(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if name and count}


def shown(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash when there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:,.{digits}f}"
