"""python -m bench traces: what spans of OpenTelemetry cost, CPU microseconds a request.

worker    drains a full queue whose requests say that a share of them is sampled; a worker for each line
producer  a closed loop of 512 requests whose sampler takes that share, with a worker without traces

"off" is without traces, "off again" the same once more: what differs there is the noise. The others export by
OTLP to a sink that takes all and keeps nothing; exporting is counted, and no span is dropped. Rounds go
through all of them in turn, and the least figure of each stands in the report: whatever else the machine does
can only add to it.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from bench.machine import environment, free_port
from bench.report import out_option, progress, write
from bench.service import Service, sample_contexts
from bench.stages import variables
from producer import Options, Producer
from producer.session.tracing import RequestTraces

_IN_FLIGHT = 512
#: Spans go out so often; after each run they are waited for.
_EXPORT_S, _SPANS_MAX = 1.0, 100_000
_FIGURES = ("worker_cpu_us", "producer_cpu_us")


@dataclass(frozen=True, slots=True)
class Variant:
    """A share of requests that is sampled; None for no traces at all."""

    name: str
    share: float | None


OFF = Variant("off", None)
VARIANTS = (OFF, Variant("off again", None), Variant("0 %", 0.0), Variant("1 %", 0.01), Variant("100 %", 1.0))


@click.command("traces")
@click.option("--requests", default=4_000, show_default=True, help="Of one run.")
@click.option("--repeats", default=6, show_default=True, help="Runs of each.")
@out_option
def command(requests: int, repeats: int, out: Path) -> None:
    """Measure; writes traces.json and traces.md."""
    surroundings = environment()
    found: dict[str, list[dict[str, float]]] = {one.name: [] for one in VARIANTS}
    with _sink() as endpoint, ExitStack() as stack:
        services = {}
        for one in VARIANTS:
            with variables(**({} if one.share is None else _traced(endpoint))):
                services[one.name] = stack.enter_context(Service())
        for _ in progress(range(repeats), "rounds", repeats):
            for one in VARIANTS:
                worker = _drained(services[one.name], one, requests)
                sent = _sent(services[OFF.name], one, requests, endpoint)
                found[one.name].append(dict(zip(_FIGURES, (worker, sent), strict=True)))
    least = {name: {f: min(run[f] for run in runs) for f in _FIGURES} for name, runs in found.items()}
    rows = [_row(name, figures, least[OFF.name]) for name, figures in least.items()]
    write(out, "traces", {"environment": surroundings, "requests": requests, "rows": rows}, rows)


def _row(name: str, figures: dict[str, float], off: dict[str, float]) -> dict[str, Any]:
    """The figures of a variant, and what they are more than those of "off"."""
    row: dict[str, Any] = {"traces": name}
    for figure, value in figures.items():
        row[figure] = round(value, 1)
        row[figure.replace("cpu_us", "more_%")] = round(100 * (value / off[figure] - 1), 1)
    return row


def _drained(service: Service, variant: Variant, count: int) -> float:
    """Worker CPU a request, with the export of its spans."""
    one_in = round(1 / variant.share) if variant.share else 0

    def options(number: int) -> Options:
        flag = "01" if one_in and number % one_in == 0 else "00"
        return Options(traceparent=f"00-{number + 1:032x}-{1:016x}-{flag}")

    done, _ = service.fill(count, options=None if variant.share is None else options)
    read = service.meter()
    service.drain(done)
    time.sleep(_EXPORT_S + 0.1)  # the last spans are on their way
    worker_s = float(read()[1])
    service.forget()
    return worker_s / done * 1e6


def _sent(service: Service, variant: Variant, count: int, endpoint: str) -> float:
    """Producer CPU a request, with the export of its spans."""
    contexts = sample_contexts()
    with Producer(settings=service.settings) as producer:
        provider = None
        if variant.share is not None:
            provider = TracerProvider(sampler=TraceIdRatioBased(variant.share))
            exporter = OTLPSpanExporter(f"{endpoint}/v1/traces")
            provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=_SPANS_MAX))
            RequestTraces(provider.get_tracer("amn"), service.settings.queue).follow(producer)
        began_s = time.process_time()
        stream = producer.predict_many(
            (contexts[i % len(contexts)] for i in range(count)), in_flight=_IN_FLIGHT
        )
        if failed := sum(isinstance(answer, Exception) for _, answer in stream):
            raise click.ClickException(f"{failed} of {count} requests failed")
        if provider is not None:
            provider.shutdown()
        return (time.process_time() - began_s) / count * 1e6


def _traced(endpoint: str) -> dict[str, str]:
    """The variables with which a worker has traces, and drops no span."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_BSP_MAX_QUEUE_SIZE": str(_SPANS_MAX),
        "OTEL_BSP_SCHEDULE_DELAY": str(int(_EXPORT_S * 1000)),
    }


@contextmanager
def _sink() -> Iterator[str]:
    """An endpoint for OTLP in a process of its own."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(port,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()


def _serve(port: int) -> None:
    ThreadingHTTPServer(("127.0.0.1", port), _Taker).serve_forever()


class _Taker(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""
