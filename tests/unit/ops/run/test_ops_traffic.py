"""Traffic, record and summary, against a producer that answers at once or never."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from ops.run import traffic as traffic_module
from ops.run.record import RunRecord
from ops.run.summary import exactly_once, percentiles, summarize, view
from ops.run.traffic import TrafficSender, TrafficSettings
from ops.sample import Sample
from producer.errors import InferenceFailed, QueueError
from producer.messages import Reply


class FakeHandle:
    """An answered request; `first` differs from `final` when it was escalated."""

    def __init__(self, final: Reply | QueueError | None, first: Reply | None = None) -> None:
        self._final, self._first = final, first or final
        self.latency_ms, self.first_latency_ms = 2.0, 1.0
        self.started_at_s = time.perf_counter()

    def done(self) -> bool:
        return self._final is not None

    def result(self, _timeout_ms: float | None = None) -> Reply:
        if isinstance(self._final, QueueError):
            raise self._final
        assert self._final is not None
        return self._final

    def first(self, _timeout_ms: float | None = None) -> Reply:
        assert isinstance(self._first, Reply)
        return self._first


class FakeProducer:
    """Answers each request with what `answer(number)` says."""

    def __init__(self, answer: Any) -> None:
        self.in_flight = 0
        self.chunks: list[int] = []
        self._answer = answer
        self._sent = 0

    def submit_many(self, contexts: list[Any], *, options: Any, block: bool) -> list[FakeHandle]:
        self.chunks.append(len(contexts))
        first, self._sent = self._sent, self._sent + len(contexts)
        return [self._answer(i) for i in range(first, self._sent)]


def sample() -> Sample:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((40, 768)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    start = np.arange(30)
    return Sample(
        vectors=vectors,
        start=start,
        position=start + 4,
        article=np.zeros(30, dtype=np.intp),
        ood=start % 2 == 0,
        domains=["git"],
    )


def reply(vector: np.ndarray, **fields: Any) -> Reply:
    return Reply(id="r", vector=vector, confidence=0.5, margin=0.1, **fields)


def run(answer: Any, requests: int = 100, **settings: Any) -> tuple[RunRecord, FakeProducer]:
    producer = FakeProducer(answer)
    choices = TrafficSettings(requests=requests, rate=settings.pop("rate", 0.0), **settings)
    traffic = TrafficSender(producer, sample(), choices)  # type: ignore[arg-type]
    return traffic.run(), producer


def test_every_request_is_sent_once_and_collected_once() -> None:
    data = sample()
    record, producer = run(lambda i: FakeHandle(reply(data.truth(i))))
    assert sum(producer.chunks) == 100
    assert max(producer.chunks) <= 64
    assert (record.answered, record.failed) == (100, 0)
    assert record.cosine_final == pytest.approx(np.ones(100), abs=1e-5)


def test_a_rate_spreads_the_requests_over_time() -> None:
    data = sample()
    record, producer = run(lambda i: FakeHandle(reply(data.truth(i))), requests=20, rate=200.0)
    assert len(producer.chunks) > 2
    assert record.elapsed_s >= 19 / 200


def test_half_way_is_told_exactly_once() -> None:
    data, told = sample(), []
    producer = FakeProducer(lambda i: FakeHandle(reply(data.truth(i))))
    traffic = TrafficSender(producer, data, TrafficSettings(requests=101, rate=0))  # type: ignore[arg-type]
    traffic.run(on_half=lambda: told.append(traffic.sent))
    assert len(told) == 1
    assert told[0] >= 51


def test_requests_that_never_end_are_given_up_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic_module, "_NOTHING_S_MAX", 0.01)
    data = sample()
    record, _ = run(lambda i: FakeHandle(None if i == 3 else reply(data.truth(i))), requests=10)
    assert (record.answered, record.failed) == (9, 1)
    assert record.counts["codes"] == {"result_timeout": 1}


def collected(handles: list[FakeHandle]) -> RunRecord:
    record = RunRecord(sample(), len(handles))
    for i, handle in enumerate(handles):
        record.collect(i, handle)  # type: ignore[arg-type]
    return record


def test_an_escalated_request_counts_for_both_models() -> None:
    truth = sample().truth(0)
    fast = reply(-truth, provisional=True, reasons=("thin_margin",))
    final = reply(truth, served_by="gru", reasons=("thin_margin",))
    record = collected([FakeHandle(final, fast)])
    assert record.escalated.tolist() == [True]
    assert (record.cosine_amn[0], record.cosine_final[0]) == pytest.approx((-1, 1), abs=1e-5)
    assert (record.amn_ms[0], record.fallback_ms[0]) == (1.0, 2.0)
    assert record.named("reasons") == {"thin_margin": 1}


def test_a_shed_request_is_not_escalated() -> None:
    record = collected([FakeHandle(reply(sample().truth(0), reasons=("thin_margin",), shed="budget"))])
    assert not record.escalated.any()
    assert record.named("reasons") == {}
    assert record.named("shed") == {"budget": 1}


def test_an_escalation_that_ends_with_amn_is_degraded_and_not_a_fallback_answer() -> None:
    truth = sample().truth(0)
    final = reply(truth, reasons=("thin_margin",), degraded="fallback_failed")
    record = collected([FakeHandle(final)])
    assert record.escalated.all()
    assert np.isnan(record.fallback_ms).all()
    assert record.named("degraded") == {"fallback_failed": 1}


def summary_of(handles: list[FakeHandle], duplicates: int = 0) -> Any:
    around = {
        "shadowed": 1,
        "lost_leases": 0,
        "duplicates": duplicates,
        "stages_ms": {
            "amn": {"end_to_end": {"requests": 4, "mean": 1.0, "p50": 0.9, "p95": 1.1, "p99": 1.234}}
        },
        "warm_up": 0,
        "worker_restarts": 0,
        "environment": {"server": "valkey 9", "workers": {"amn": 1}, "rate_per_s": 5, "cores": 1},
    }
    return summarize(collected(handles), sample(), **around)


def test_the_json_has_the_promised_keys_first_and_in_order() -> None:
    data = sample()
    summary = summary_of([FakeHandle(reply(data.truth(i))) for i in range(4)])
    keys = list(summary)
    assert keys[:12] == [
        "requests",
        "answered",
        "failed",
        "escalated",
        "shadowed",
        "latency_ms",
        "latency_ms_fallback",
        "throughput_per_s",
        "reasons",
        "cosine",
        "fallback_rate",
        "ood_delta",
    ]
    assert list(summary["latency_ms"]) == ["p50", "p95", "p99"]
    assert list(summary["cosine"]) == [
        "amn", "final", "amn_escalated", "fallback", "context_mean", "last_vector"
    ]  # fmt: skip


@pytest.mark.parametrize(("failed", "duplicates", "good"), [(0, 0, True), (1, 0, False), (0, 1, False)])
def test_only_exactly_one_answer_each_is_a_success(failed: int, duplicates: int, good: bool) -> None:
    data = sample()
    handles = [FakeHandle(reply(data.truth(i))) for i in range(4)]
    handles[:failed] = [FakeHandle(InferenceFailed("broken"))] * failed
    summary = summary_of(handles, duplicates)
    assert exactly_once(summary) is good
    assert summary["failures"] == ({"inference_failed": 1} if failed else {})


def test_the_ood_delta_is_unseen_minus_known() -> None:
    data = sample()
    signs = [1 if data.ood[i] else -1 for i in range(4)]
    summary = summary_of([FakeHandle(reply(sign * data.truth(i))) for i, sign in enumerate(signs)])
    assert summary["ood_delta"] == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize(("escalated", "kept"), [(40, True), (41, False)])
def test_the_fallback_rate_is_kept_up_to_20_percent_and_not_a_request_more(
    escalated: int, kept: bool
) -> None:
    truth = sample().truth(0)
    fast = reply(truth, provisional=True, reasons=("thin_margin",))
    slow = reply(truth, served_by="gru", reasons=("thin_margin",))
    handles = [FakeHandle(slow, fast)] * escalated + [FakeHandle(reply(truth))] * (200 - escalated)
    assert summary_of(handles)["objectives"]["fallback_rate"] is kept


def test_percentiles_of_nothing_are_none() -> None:
    assert percentiles(np.array([np.nan], dtype=np.float32)) == {"p50": None, "p95": None, "p99": None}


def test_the_view_draws_what_is_missing_as_a_dash() -> None:
    from rich.console import Console

    console = Console(width=100, record=True, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        console.print(view(summary_of([FakeHandle(InferenceFailed("broken"))])))
    text = capture.get()
    assert "0 of 1 requests were answered" in text
    assert "inference_failed" in text
    assert " - " in text
