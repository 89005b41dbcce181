"""Traces of a whole service, as an endpoint for OTLP receives them from each of its processes."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest
from command import ROOT, Amn
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from receiver import Receiver

pytestmark = pytest.mark.timeout(180)


def spans_of(receiver: Receiver) -> list[tuple[str, Any]]:
    """The spans that came, each with the name of its service."""
    found = []
    for call in receiver.calls:
        body = gzip.decompress(call.body) if call.headers.get("content-encoding") == "gzip" else call.body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            values = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            found += [(values["service.name"], span) for one in resource.scope_spans for span in one.spans]
    return found


@pytest.mark.slow
def test_an_endpoint_in_the_environment_gets_each_trace_whole_from_every_process(amn: Amn) -> None:
    receiver = Receiver().start()
    try:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
        ended = amn("run", "--requests", 300, "--rate", 300, "--json", **environment)
    finally:
        receiver.stop()
    assert ended.code == 0, ended.err
    run = json.loads(ended.out)
    assert {call.path for call in receiver.calls} == {"/v1/traces"}
    spans = spans_of(receiver)
    names = Counter(span.name for _, span in spans)
    assert names["amn request"] == names["amn answer"] >= 300  # some warm the workers up
    assert names["fallback answer"] >= run["escalated"] > 0
    assert names["gate"] == names["amn batch"] + names["fallback batch"]
    services = {span.name: service for service, span in spans}
    assert (services["amn request"], services["amn answer"]) == ("amn-producer", "amn-worker")
    of_fallback = next(span for _, span in spans if span.name == "fallback answer")
    same = Counter(span.name for _, span in spans if span.trace_id == of_fallback.trace_id)
    assert same == {"amn request": 1, "amn answer": 1, "fallback answer": 1}


MANY_SPANS = """
import time
from producer.session.tracing import tracer
found = tracer("service")
for _ in range(1_500):
    found.start_span("amn request").end()
print(time.time(), flush=True)
"""


def test_an_endpoint_that_is_not_there_does_not_hold_up_the_end_of_a_process(amn: Amn) -> None:
    environment = amn.environment | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", MANY_SPANS]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert time.time() - float(ended.stdout) < 8  # by itself each of three exports is tried for ten seconds
    assert "Shutdown in progress" in ended.stderr
