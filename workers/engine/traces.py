"""Spans of OpenTelemetry for the requests of a worker whose producer sampled them.

All of them are made when the server has said that the requests are over, out of the moments that the times of
the stages have anyway: a micro-batch has a span with its stages, linked to its requests, and each request
has one below its producer's, linked to the micro-batch. They stand on the server's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog

from producer.messages import Request
from producer.session.tracing import parent_of
from producer.stages import STAGES
from producer.transport.clock import time_ms
from workers.engine.entry import Moments, Outcome

_LOG = structlog.get_logger("amn.worker")
_QUEUE, *_STAGES = STAGES
_LENGTH, _SAMPLED = 55, frozenset("13579bdf")


def is_sampled(traceparent: str) -> bool:
    """True if a trace context says that its trace is recorded."""
    return len(traceparent) == _LENGTH and traceparent[-1] in _SAMPLED


class WorkerTraces:
    """The spans of one worker.

    Args:
        tracer: Of OpenTelemetry.
        kind: Of the worker; the names of the spans begin with it.
        worker: Its name.
    """

    def __init__(self, tracer: Any, kind: str, worker: str) -> None:
        from opentelemetry import context, trace

        self._trace, self._root = trace, context.Context()
        self._tracer, self._kind, self._worker = tracer, kind, worker

    def ended(self, outcomes: Sequence[Outcome], statuses: Sequence[bytes], at: Sequence[bytes]) -> None:
        """Makes the spans of a micro-batch's outcomes that the server took, at this time by its TIME."""
        sampled = [
            (outcome, outcome.request)
            for outcome, status in zip(outcomes, statuses, strict=True)
            if outcome.request is not None and status == b"ok" and is_sampled(outcome.request.traceparent)
        ]
        if sampled:
            try:
                self._tell(sampled, _epoch_ns(outcomes[0].moments, time_ms(at)), len(outcomes))
            except Exception as error:  # the requests are over; what only tells of them ends no worker
                _LOG.warning("spans_not_made", worker=self._worker, error=repr(error))

    def _tell(self, sampled: Sequence[tuple[Outcome, Request]], at_ns: Sequence[int], count: int) -> None:
        trace = self._trace
        parents = [parent_of(request.traceparent) for _, request in sampled]
        contexts = [trace.get_current_span(parent).get_span_context() for parent in parents]
        if not (links := [trace.Link(one) for one in contexts if one.is_valid]):
            return  # none of them names a trace
        batch = self._tracer.start_span(
            f"{self._kind} batch",
            self._root,
            kind=trace.SpanKind.CONSUMER,
            attributes={"messaging.batch.message_count": count, "amn.worker": self._worker},
            links=links,
            start_time=at_ns[0],
        )
        inside = trace.set_span_in_context(batch, self._root)
        for name, start, end in zip(_STAGES, at_ns, at_ns[1:], strict=False):
            self._tracer.start_span(name, inside, start_time=start).end(end)
        batch.end(at_ns[-1])
        link = trace.Link(batch.get_span_context())
        for (outcome, request), parent, context in zip(sampled, parents, contexts, strict=True):
            if not context.is_valid:
                continue
            attributes = {
                "messaging.system": "amn",
                "messaging.message.id": request.id,
                "amn.contexts": request.count,
                "amn.end": outcome.op,
                "amn.counters": outcome.counters,
            }
            span = self._tracer.start_span(
                f"{self._kind} answer",
                parent,
                kind=trace.SpanKind.CONSUMER,
                attributes=attributes,
                links=[link],
                start_time=at_ns[0],
            )
            if outcome.op == "dead" or outcome.counters.startswith("failed"):
                span.set_status(trace.StatusCode.ERROR, outcome.message)
            span.end(at_ns[-1])


def _epoch_ns(moments: Moments, ended_at_ms: float) -> list[int]:
    """Epoch nanoseconds of the read and of the end of each stage after it, by the server's clock."""
    at_ms = [moments.leased_at_ms + (one - moments.leased_at_s) * 1000 for one in moments[1:]]
    return [round(one * 1e6) for one in (*at_ms, max(at_ms[-1], ended_at_ms))]
