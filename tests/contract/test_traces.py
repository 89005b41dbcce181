"""One trace follows a request through producer, AMN worker, fallback and reply."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
from rig import KEYS, Rig
from structlog.testing import capture_logs
from test_batches import Model, amn_handler, settings

from ops.deadletters import DeadLetters
from producer import AsyncProducer, Options, Producer, ProducerSettings, errors
from producer.session.handle import Handle
from producer.session.tracing import tracer
from workers.engine.loop import Loop
from workers.engine.microbatch import MicroBatch
from workers.engine.queue import LeasedQueue
from workers.engine.stages import StageTimes
from workers.engine.traces import WorkerTraces, is_sampled
from workers.handlers.fallback import FallbackHandler
from workers.settings import QueueSettings, WorkerSettings


@contextmanager
def provided(monkeypatch: pytest.MonkeyPatch, sampler: Any) -> Iterator[Any]:
    """A provider as an application would set it, once in its life."""
    provider, exporter = TracerProvider(sampler=ParentBased(sampler)), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    exporter.provider = provider  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        patched.setattr(trace, "get_tracer_provider", lambda: provider)
        yield exporter


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with provided(monkeypatch, ALWAYS_ON) as found:
        yield found


@contextmanager
def service(url: str, queue: str = "main") -> Iterator[None]:
    """An AMN worker and a fallback, each in a thread, that trace as those of `workers.kinds` do."""
    chosen = WorkerSettings(
        kind="amn", producer=ProducerSettings(url=url, queue=queue), queue=QueueSettings(block_ms=20)
    )
    keys = KEYS if queue == "main" else type(KEYS)(queue)
    handlers: dict[str, Any] = {"amn": amn_handler(chosen), "fallback": FallbackHandler(Model("gru", 0))}  # type: ignore[arg-type]
    loops = []
    for (kind, handler), stream in zip(handlers.items(), (keys.requests, keys.fallback), strict=True):
        leased = LeasedQueue(chosen, stream, f"w-{kind}")
        found = tracer("amn-worker", decides=False)
        traces = None if found is None else WorkerTraces(found, kind, leased.name)
        loops.append(Loop(leased, handler, stages=StageTimes(), traces=traces))
    threads = [threading.Thread(target=loop.run, daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for loop, thread in zip(loops, threads, strict=True):
            loop.stop()
            thread.join(10)
            loop.queue.close()


def by_name(exporter: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for span in exporter.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


def test_one_trace_follows_an_escalated_request_to_its_answer(
    real_server: Any, context: np.ndarray, exporter: Any
) -> None:
    application = exporter.provider.get_tracer("application")
    with service(real_server.url), Producer(settings=settings(real_server)) as producer:
        with application.start_as_current_span("page") as page:
            handle = producer.submit(context, escalate=True)
        reply = handle.result()
    assert reply.served_by == "gru"
    spans = by_name(exporter)
    assert {name: len(found) for name, found in spans.items()} == {
        **dict.fromkeys(("page", "amn request", "amn answer", "fallback answer"), 1),
        **dict.fromkeys(("amn batch", "fallback batch"), 1),
        **dict.fromkeys(("batch", "model", "gate", "finish"), 2),
    }
    request, amn, fallback = (spans[f"{who}"][0] for who in ("amn request", "amn answer", "fallback answer"))
    own, trace_id = request.context, page.get_span_context().trace_id
    assert {span.context.trace_id for span in (request, amn, fallback)} == {trace_id}
    assert request.parent.span_id == page.get_span_context().span_id
    assert amn.parent.span_id == fallback.parent.span_id == own.span_id
    assert reply.traceparent[:-2] == f"00-{trace_id:032x}-{own.span_id:016x}-"
    assert is_sampled(reply.traceparent)
    assert (amn.attributes["amn.end"], fallback.attributes["amn.end"]) == ("escalate", "reply")
    assert amn.attributes["messaging.message.id"] == request.attributes["messaging.message.id"] == handle.id
    assert (request.attributes["amn.served_by"], request.attributes["amn.reasons"]) == ("gru", ("asked_for",))
    whole_ns, amn_ns, fallback_ns = (one.end_time - one.start_time for one in (request, amn, fallback))
    assert 0 < amn_ns + fallback_ns < whole_ns  # one after the other, within the request


def test_the_span_of_a_micro_batch_holds_its_stages_and_is_linked_to_its_requests_both_ways(
    real_server: Any, contexts: Callable[..., Any], exporter: Any
) -> None:
    with Producer(settings=settings(real_server)) as producer:
        handles = producer.submit_many(contexts(5))  # wait for a worker, and so for the same one
        with service(real_server.url):
            assert all(handle.result().traceparent for handle in handles)
    spans = by_name(exporter)
    [batch], answers = spans["amn batch"], spans["amn answer"]
    assert batch.parent is None
    assert batch.attributes["messaging.batch.message_count"] == len(answers) == 5
    assert {link.context.span_id for link in batch.links} == {
        span.context.span_id for span in spans["amn request"]
    }
    assert {link.context.span_id for span in answers for link in span.links} == {batch.context.span_id}
    stages = [spans[name][0] for name in ("batch", "model", "gate", "finish")]
    assert {stage.parent.span_id for stage in stages} == {batch.context.span_id}
    assert [stage.end_time for stage in stages[:-1]] == [stage.start_time for stage in stages[1:]]
    assert (stages[0].start_time, stages[-1].end_time) == (batch.start_time, batch.end_time)


def test_the_producer_decides_and_its_flag_goes_with_the_request(
    real_server: Any, contexts: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        provided(monkeypatch, TraceIdRatioBased(0.3)) as exporter,
        service(real_server.url),
        Producer(settings=settings(real_server)) as producer,
    ):
        replies = [reply for _, reply in producer.predict_many(contexts(60))]
        batched = producer.predict_batch(contexts(3), escalate=True)
    flags = {one.traceparent.split("-")[1]: is_sampled(one.traceparent) for one in (*replies, batched)}
    sampled = {trace_id for trace_id, flag in flags.items() if flag}
    assert len(flags) == 61
    assert 0 < len(sampled) < 61
    spans = by_name(exporter)
    for name in ("amn request", "amn answer"):
        assert {f"{span.context.trace_id:032x}" for span in spans[name]} == sampled


def test_the_context_that_a_caller_names_is_the_parent_and_one_that_is_not_sampled_stays_so(
    real_server: Any, context: np.ndarray, exporter: Any
) -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with service(real_server.url), Producer(settings=settings(real_server)) as producer:
        replies = [
            producer.predict(context, traceparent=f"00-{trace_id}-{span_id}-{flag}") for flag in ("01", "00")
        ]
    assert [reply.traceparent[:36] for reply in replies] == [f"00-{trace_id}-"] * 2
    assert [is_sampled(reply.traceparent) for reply in replies] == [True, False]
    [request] = by_name(exporter)["amn request"]
    assert (f"{request.parent.span_id:016x}", request.parent.is_remote) == (span_id, True)
    assert len(by_name(exporter)["amn answer"]) == 1


def test_what_goes_wrong_is_an_error_of_its_span(
    real_server: Any, contexts: Callable[..., Any], exporter: Any
) -> None:
    rows = contexts(3)
    chosen = settings(real_server, entries_max=1)
    with Producer(settings=chosen) as producer:
        with pytest.raises(errors.InvalidRequest):
            producer.submit(2 * rows[0])
        late = producer.submit(rows[0], deadline_ms=1, priority="normal")
        with pytest.raises(errors.QueueFull):
            producer.submit_many(rows[1:])
        with service(real_server.url), pytest.raises(errors.DeadlineExceeded):
            late.result()
        indices = dict(producer.predict_many([2 * rows[0]]))
        assert isinstance(indices[0], errors.BadNorm)
    requests = by_name(exporter)["amn request"]
    assert [span.attributes["error.type"] for span in requests if not span.status.is_ok] == [
        *("bad_norm", "queue_full", "queue_full", "deadline_exceeded", "bad_norm"),
    ]
    assert len(requests) == 5


class Breaks:
    """A handler that cannot answer anything."""

    def handle(self, batch: MicroBatch) -> list[Any]:
        raise RuntimeError("cannot")


def test_reply_failure_dead_letter_and_log_name_the_trace_whether_or_not_anybody_traces(
    real_rig: Rig, context: np.ndarray
) -> None:
    rig, named = real_rig, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    loop = Loop(rig.queue("w"), Breaks())
    with capture_logs() as logs:
        rig.put("late", expires_at_ms=1.0, traceparent=named)
        rig.put("broken", traceparent=named)
        loop._turn()
    failures = {one.id: one for one in rig.replies()}
    assert {name: (one.code, one.traceparent) for name, one in failures.items()} == {  # type: ignore[union-attr]
        "late": ("deadline_exceeded", named),
        "broken": ("dead_lettered", named),
    }
    [letter] = DeadLetters(rig.admin, ProducerSettings(url=rig.url)).newest_first()
    assert letter.request is not None
    assert letter.request.traceparent == named
    told = [(line["request"], line["traceparent"]) for line in logs if "request" in line]
    assert told == [("broken", named)]
    with Producer(settings=settings(rig)) as producer, service(rig.url):
        assert producer.predict(context, traceparent=named).traceparent == named
        assert producer.predict(context, traceparent=named, escalate=True).traceparent == named
        assert producer.predict_batch(context[None], traceparent=named).traceparent == named
        assert producer.predict(context).traceparent == ""


def test_every_kind_of_producer_has_its_spans(
    real_server: Any, contexts: Callable[..., Any], exporter: Any, run: Callable[..., Any]
) -> None:
    rows = contexts(4)

    async def main() -> None:
        with exporter.provider.get_tracer("application").start_as_current_span("page"):
            async with AsyncProducer(settings=settings(real_server)) as producer:
                await producer.predict(rows[0])
                async for _ in producer.predict_many(rows[:2]):
                    pass

    with service(real_server.url):
        run(main())
        page, *others = (
            {span.context.trace_id for span in by_name(exporter)[name]} for name in ("page", "amn request")
        )
        assert others == [page]
    with service(real_server.url, "main.p0"), service(real_server.url, "main.p1"):
        options = [Options(sequence=f"d{i}") for i in range(4)]
        with Producer(settings=settings(real_server), partitions=2) as parted:
            replies = [handle.result() for handle in parted.submit_many(rows, options=options)]
    assert len({reply.traceparent for reply in replies} - {""}) == 4
    assert len(by_name(exporter)["amn request"]) == 3 + 4


@pytest.mark.parametrize("names", [("same", "same"), ("one", "two")])
def test_a_request_that_another_thread_outruns_ends_its_span(
    real_server: Any, context: np.ndarray, exporter: Any, names: tuple[str, str]
) -> None:
    """The other one comes in while the handle is made: under the same id, or in the last place."""
    with Producer(settings=settings(real_server, in_flight_max=1)) as producer, service(real_server.url):
        others: list[Any] = []

        def made(*arguments: Any, **fields: Any) -> Handle:
            if not others:
                others.append(None)
                others[0] = producer.submit(context, request_id=names[1])
            return Handle(*arguments, **fields)

        producer._handle = made  # type: ignore[assignment]
        handle = producer.submit(context, request_id=names[0], block=True)
        assert handle.result().vector.shape == others[0].result().vector.shape
    spans = by_name(exporter)["amn request"]
    assert len(spans) == 2
    assert all(span.status.is_ok or span.status.is_unset for span in spans)


def test_without_a_provider_or_an_endpoint_there_is_no_tracer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracer("amn-producer") is None
    assert "_submitting" not in vars(Producer())  # as it is in the class
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracer("amn-producer") is None
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    monkeypatch.setattr(trace, "get_tracer_provider", trace.NoOpTracerProvider)
    assert tracer("amn-producer") is None
