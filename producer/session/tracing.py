"""Traces by OpenTelemetry: one span for each request of a producer, below which its workers put theirs.

Off unless the application set a tracer provider before it made the producer, or the environment names an
endpoint for OTLP (docs/running.md, Traces). OpenTelemetry is imported then and not before. The sampler of the
producer's process decides; its flag goes with the request, in `traceparent`.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from itertools import repeat
from typing import Any, TypeVar

from producer.errors import QueueError
from producer.messages import Answer, Reply
from producer.options import Options
from producer.session.handle import BaseHandle
from producer.session.requests import Outgoing
from producer.transport.verbs import Verb

T = TypeVar("T")
MakeHandle = Callable[[Outgoing], BaseHandle]
_LOG = logging.getLogger("amn.producer")
_ENDPOINTS = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
_SYSTEM = "messaging.system"
_UNKNOWN = "unknown_service"
_NOTHING = (None, None)
#: The end of a process waits for so long until its last spans are exported.
_FLUSH_S = 2.0


def tracer(service: str, *, decides: bool = True) -> Any | None:
    """Return the tracer of this process, or None where nobody asked for traces.

    Args:
        service: The name of the service for spans that go to an endpoint of the environment, unless
            OTEL_SERVICE_NAME says another.
        decides: Whether the sampler of the environment is asked; else all spans that are begun are sampled.
    """
    api = sys.modules.get("opentelemetry.trace")  # who never imported it has set no provider
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if api is not None and not isinstance(found := api.get_tracer_provider(), api.ProxyTracerProvider):
        return None if isinstance(found, api.NoOpTracerProvider) else found.get_tracer("amn")
    if not any(map(os.environ.get, _ENDPOINTS)) or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    try:
        return _exporting(service, decides).get_tracer("amn")
    except ImportError as error:
        _LOG.warning("traces are off: an endpoint is set, and %s; pip install 'amn-queue[otel]'", error)
        return None


@lru_cache(maxsize=4)
def _exporting(service: str, decides: bool) -> Any:
    """The provider for the endpoint in the environment; the end of the process flushes it."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    resource = Resource.create()
    if str(resource.attributes.get("service.name", _UNKNOWN)).startswith(_UNKNOWN):
        resource = resource.merge(Resource({"service.name": service}))
    sampler, exporter = None if decides else ALWAYS_ON, OTLPSpanExporter()
    provider = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    ending = threading.Event()

    def cut_short() -> None:
        ending.wait()
        time.sleep(_FLUSH_S)
        exporter.shutdown()  # type: ignore[no-untyped-call]

    def flush() -> None:
        ending.set()
        provider.shutdown()

    # An exporter asks an endpoint that is away again and again; no process may wait for that when it ends.
    threading.Thread(target=cut_short, name="amn-traces-end", daemon=True).start()
    atexit.register(flush)
    return provider


def parent_of(traceparent: str) -> Any | None:
    """The context of OpenTelemetry that a trace context names; None for the current one."""
    if not traceparent:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})


class RequestTraces:
    """The spans of one producer's requests, from the submit to the final answer."""

    def __init__(self, tracer: Any, queue: str) -> None:
        from opentelemetry.trace import SpanKind

        self._begin = partial(tracer.start_span, "amn request", kind=SpanKind.PRODUCER)
        self._shared = {_SYSTEM: "amn", "messaging.destination.name": queue}

    def follow(self, producer: Any) -> None:
        """Has this producer send everything from here; one without traces has nothing in its way."""
        submitting, streaming = producer._submitting, producer._streaming

        def submit(contexts: Any, options: Any, block: bool, batched: bool = False) -> Verb[list[Any]]:
            send = partial(submitting, contexts, options, block, batched)
            return self._followed(options, len(contexts), send)

        def stream(options: Options, chunk: Any, put: Any) -> Verb[None]:
            return self._followed(options, len(chunk), partial(streaming, options, chunk, put))

        producer._submitting, producer._streaming = submit, stream

    def _followed(
        self, options: Options | Sequence[Options], count: int, verb_of: Callable[[CallSpans], Verb[T]]
    ) -> Verb[T]:
        """Runs the verb that sends so many requests, each with a span."""
        each: Iterable[Options] = repeat(options, count) if isinstance(options, Options) else options
        spans = CallSpans([self._span(one) for one in each])
        try:
            found = yield from verb_of(spans)
        except BaseException as error:
            spans.end_left(error)
            raise
        spans.end_left()
        return found

    def _span(self, options: Options) -> Any:
        span = self._begin(parent_of(options.traceparent))
        if span.is_recording():
            said = {"amn.lane": options.lane, "amn.priority": options.priority}
            span.set_attributes(self._shared | said)
        return span


class CallSpans:
    """The spans of the requests of one call, by their numbers.

    Attributes:
        traceparents: Trace contexts for the requests.
    """

    def __init__(self, spans: Sequence[Any]) -> None:
        #: With the handle that was made last, which may have been outrun and dropped.
        self._left: dict[int, tuple[Any, BaseHandle | None]] = {
            number: (span, None) for number, span in enumerate(spans)
        }
        self._numbers: dict[str, int] = {}
        self.traceparents = [_traceparent(span.get_span_context()) for span in spans]

    def noted(
        self,
        outgoing: Iterable[Outgoing],
        numbers: Iterable[int],
        make_handle: Callable[[Outgoing], BaseHandle],
    ) -> Callable[[Outgoing], BaseHandle]:
        """Learns the requests of these numbers; returns what makes handles that end their spans."""
        self._numbers.update((item.id, number) for item, number in zip(outgoing, numbers, strict=True))

        def make(item: Outgoing) -> BaseHandle:
            handle, number = make_handle(item), self._numbers[item.id]
            span, _ = self._left.pop(number, _NOTHING)
            if span is not None and span.is_recording():
                self._left[number] = span, handle
                handle.tell(partial(self._ended, number))
            return handle

        return make

    def end(self, number: int, error: BaseException | None = None) -> None:
        """Ends the span of a request that was not sent, or shares the answer of another."""
        span, _ = self._left.pop(number, _NOTHING)
        if span is not None:
            if error is not None:
                _failed(span, error)
            span.end()

    def end_left(self, error: BaseException | None = None) -> None:
        """Ends the spans that no handle will end."""
        for number, (_, handle) in list(self._left.items()):
            if handle is None or handle.got_in_at_s == math.inf:
                self.end(number, error)

    def _ended(self, number: int, handle: BaseHandle, outcome: Answer | QueueError) -> None:
        span, _ = self._left.pop(number, _NOTHING)
        if span is None:
            return
        said: dict[str, Any] = {"messaging.message.id": handle.id, "amn.contexts": handle.contexts}
        if isinstance(outcome, QueueError):
            _failed(span, outcome)
        else:
            said |= {"amn.served_by": outcome.served_by, "amn.degraded": outcome.degraded}
            if isinstance(outcome, Reply):
                said |= {"amn.shed": outcome.shed, "amn.reasons": outcome.reasons}
        span.set_attributes(said)
        span.end()


def _traceparent(context: Any) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _failed(span: Any, error: BaseException) -> None:
    from opentelemetry.trace import StatusCode

    span.set_status(StatusCode.ERROR, str(error))
    span.set_attribute("error.type", getattr(error, "code", type(error).__name__))
