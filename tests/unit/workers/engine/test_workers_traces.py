"""The spans of a worker: only of requests that name a sampled trace, and never in the way of the work."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from producer.messages import Request
from workers.engine.entry import Entry, Moments, Outcome
from workers.engine.traces import WorkerTraces, is_sampled

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"
#: What a client may send in place of one, of its length and with its last digit, where that is possible.
HOSTILE = (
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"ff-{TRACE}-{SPAN}-01",
    f"00-{TRACE.upper()}-{SPAN}-01",
    f"00-{'é' * 32}-{SPAN}-01",
    "1" * 55,
    "\x00" * 54 + "1",
    "1" * 512,
)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter: InMemorySpanExporter) -> WorkerTraces:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return WorkerTraces(provider.get_tracer("amn"), "amn", "w")


def divided(epoch_ms: float) -> tuple[bytes, bytes]:
    """A moment as TIME gives it: seconds, and the microseconds of the last one."""
    seconds, micros = divmod(round(epoch_ms * 1000), 1_000_000)
    return str(seconds).encode(), str(micros).encode()


ENDED_AT = divided(1_000_010.0)


def outcomes(*traceparents: str) -> list[Outcome]:
    now_s = time.perf_counter()
    moments = Moments(1_000_000.0, now_s, now_s + 0.001, now_s + 0.003, now_s + 0.004)
    context = np.zeros((5, 768), np.float32)
    return [
        Outcome(
            entry=Entry(b"1-1", {}),
            op="reply",
            counters="answered",
            request=Request(id=f"r{i}", reply_to="client", context=context, traceparent=traceparent),
            moments=moments,
        )
        for i, traceparent in enumerate(traceparents)
    ]


def test_a_trace_context_that_names_no_trace_makes_no_span_and_harms_none_beside_it(
    traces: WorkerTraces, exporter: Any
) -> None:
    some = outcomes(*HOSTILE)
    traces.ended(some, [b"ok"] * len(some), ENDED_AT)
    assert exporter.get_finished_spans() == ()
    some = outcomes(*HOSTILE, GOOD)
    with capture_logs() as logs:
        traces.ended(some, [b"ok"] * len(some), ENDED_AT)
    spans = [span for span in exporter.get_finished_spans() if span.name == "amn answer"]
    assert [f"{span.context.trace_id:032x}" for span in spans] == [TRACE]
    assert logs == []


def test_the_stages_of_a_span_follow_each_other_to_the_end_by_the_servers_clock(
    traces: WorkerTraces, exporter: Any
) -> None:
    for ended_at_ms, last_ms in ((1_000_006.0, 2.0), (999_000.0, 0.0)):  # and one of a clock that went back
        exporter.clear()
        traces.ended(outcomes(GOOD), [b"ok"], divided(ended_at_ms))
        spans = {span.name: (span.end_time - span.start_time) / 1e6 for span in exporter.get_finished_spans()}
        assert spans == {
            "batch": pytest.approx(1.0),
            "model": pytest.approx(2.0),
            "gate": pytest.approx(1.0),
            "finish": pytest.approx(last_ms),
            "amn batch": pytest.approx(4.0 + last_ms),
            "amn answer": pytest.approx(4.0 + last_ms),
        }


def test_what_the_server_did_not_take_or_nobody_sampled_has_no_span(
    traces: WorkerTraces, exporter: Any
) -> None:
    traces.ended(outcomes(GOOD, GOOD, "", GOOD[:-1] + "2"), [b"lost", b"full", b"ok", b"ok"], ENDED_AT)
    assert exporter.get_finished_spans() == ()
    assert [is_sampled(GOOD[:-1] + digit) for digit in "013a"] == [False, True, True, False]


def test_an_error_in_the_making_of_spans_is_told_and_ends_nothing(traces: WorkerTraces) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no span today")

    traces._tracer = type("Broken", (), {"start_span": broken})()
    with capture_logs() as logs:
        traces.ended(outcomes(GOOD), [b"ok"], ENDED_AT)
    assert [line["event"] for line in logs] == ["spans_not_made"]
