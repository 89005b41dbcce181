"""The parts of the service whose cost `python -m bench overhead` measures, and what is told beside it."""

from __future__ import annotations

import math
import multiprocessing
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import click
import numpy as np

from bench.files import SAMPLE
from bench.machine import cpu_seconds, free_port, pin, resident_mb
from bench.report import Row
from bench.service import Service, listening, sample_contexts
from ops.page.look import Looker
from ops.page.snapshot import Snapshots
from ops.sample import Sample
from producer import Options, Producer
from producer.messages import CONTEXT_SHAPE, Request
from producer.session.tracing import RequestTraces
from producer.transport.connection import connect
from workers.engine.entry import Entry, Outcome
from workers.engine.microbatch import MicroBatch
from workers.engine.stages import StageTimes

VIEWERS = 50
_PATIENCE_S = 30.0
#: Spans go out so often; after each run they are waited for.
_EXPORT_S, _SPANS_MAX = 1.0, 100_000
#: Requests that are counted by themselves in one go, and their moment: epoch ms, and as TIME gives it.
_ALONE, _NOW_MS, _NOW = 2_560, 1_700_000_000_000, (b"1700000000", b"900")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A service with a part, or without it.

    Attributes:
        environment: Variables of its processes.
        sampled: Share of the requests for its shadow worker; 0 for none.
        options: Those of a request, by its number and the name of the run.
        during: What goes on beside a run.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    sampled: float = 0.0
    options: Callable[[int, str], Options] | None = None
    during: Callable[[Service], AbstractContextManager[object]] = lambda _: nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part.

    Attributes:
        variants: Services with it, by name; what they need lives on the stack.
        off: The service without it.
        settle_s: So long after a run its last work is waited for.
        beside: A table of its own, of measurements on the service without it.
    """

    variants: Callable[[ExitStack], Mapping[str, Variant]]
    off: Variant = field(default_factory=Variant)
    settle_s: float = 0.0
    beside: Callable[[Service], Sequence[Row]] = lambda _: []


def _counting(_: Service) -> list[Row]:
    """The CPU of counting the times of the stages by itself, which is steadier."""
    return [{"requests of a micro-batch": n, "us a request": round(_counting_us(n), 2)} for n in (1, 8, 256)]


def _counting_us(count: int, repeats: int = 20) -> float:
    """CPU of a loop and its keeper for the times of one request, in micro-batches of so many; the least."""
    context = np.zeros(CONTEXT_SHAPE, np.float32)
    request = Request(id="r", reply_to="c", context=context, submitted_at_ms=_NOW_MS - 0.5)
    entries = [Entry(b"%d-0" % _NOW_MS, {}, 1, 2)] * count
    batch = MicroBatch(entries, [request] * count, context, _NOW_MS, time.perf_counter())
    outcomes = [Outcome(entry=entry, op="reply", counters="answered,answered:amn") for entry in entries]
    least_s = math.inf
    for _ in range(repeats):
        times, started_s = StageTimes(), time.thread_time()
        for _ in range(_ALONE // count):
            times.computed(batch, outcomes)
            times.ended(outcomes, [b"ok"] * count, _NOW)
        times.growth()
        least_s = min(least_s, time.thread_time() - started_s)
    return 1e6 * least_s / _ALONE


def _sampling(_: ExitStack) -> dict[str, Variant]:
    """Workers that sample, and a shadow worker that is stopped."""
    sample = Sample.load(SAMPLE)

    def options(number: int, run: str) -> Options:
        return sample.options(number % len(sample), run)

    @contextmanager
    def stopped(service: Service) -> Iterator[None]:
        for pid in service.shadows:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in service.shadows:
                os.kill(pid, signal.SIGCONT)

    one, five = (Variant(sampled=share, options=options) for share in (0.01, 0.05))
    halted = Variant(sampled=0.05, options=options, during=stopped)
    return {"1 %": one, "5 %": five, "5 %, shadow worker stopped": halted}


def _tracing(stack: ExitStack) -> dict[str, Variant]:
    """Workers with traces, of which a share is sampled; they export to a sink, and drop no span."""
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": stack.enter_context(_sink()),
        "OTEL_BSP_MAX_QUEUE_SIZE": str(_SPANS_MAX),
        "OTEL_BSP_SCHEDULE_DELAY": str(int(_EXPORT_S * 1000)),
    }

    def variant(one_in: int) -> Variant:
        def options(number: int, _: str) -> Options:
            flag = "01" if one_in and number % one_in == 0 else "00"
            return Options(traceparent=f"00-{number + 1:032x}-{1:016x}-{flag}")

        return Variant(environment=environment, options=options)

    return {"0 %": variant(0), "1 %": variant(100), "100 %": variant(1)}


def _traced_producers(service: Service, count: int = 4_000) -> list[Row]:
    """Producer's CPU a request, with the export of its spans, by the share that its sampler takes."""
    with _sink() as endpoint:
        shares = {"without traces": None, "0 %": 0.0, "1 %": 0.01, "100 %": 1.0}
        return [
            {
                "producer samples": name,
                "CPU, us a request": min(_sent_us(service, share, count, endpoint) for _ in "123"),
            }
            for name, share in shares.items()
        ]


def _sent_us(service: Service, share: float | None, count: int, endpoint: str) -> float:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

    contexts = sample_contexts()
    with Producer(settings=service.settings) as producer:
        provider = TracerProvider(sampler=TraceIdRatioBased(share or 0.0))
        if share is not None:
            exporter = OTLPSpanExporter(f"{endpoint}/v1/traces")
            provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=_SPANS_MAX))
            RequestTraces(provider.get_tracer("amn"), service.settings.queue).follow(producer)
        began_s = time.process_time()
        for _, answer in producer.predict_many(
            (contexts[i % len(contexts)] for i in range(count)), in_flight=512
        ):
            if isinstance(answer, Exception):
                raise click.ClickException(f"a request failed: {answer}")
        provider.shutdown()
        return round((time.process_time() - began_s) / count * 1e6, 1)


@contextmanager
def _sink() -> Iterator[str]:
    """An endpoint for OTLP in a process of its own, which takes all and keeps nothing."""
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


@contextmanager
def _watched(service: Service) -> Iterator[int]:
    """The page, by its process, with viewers in another one, who read each event and throw it away."""
    processes = multiprocessing.get_context("spawn")
    told = processes.Event()
    with listening("dashboard", service.url) as (page, port):
        viewers = processes.Process(target=_view, args=(port, told), daemon=True)
        viewers.start()
        try:
            if not told.wait(_PATIENCE_S):
                raise click.ClickException(f"not all of {VIEWERS} viewers were served in {_PATIENCE_S:.0f} s")
            yield page
        finally:
            viewers.terminate()
            viewers.join()


def _view(port: int, told: Any) -> None:
    pin(os.getpid(), {1})
    os.nice(19)  # they are on other machines, as a rule
    seen: set[int] = set()
    ready = selectors.DefaultSelector()
    for _ in range(VIEWERS):
        viewer = socket.create_connection(("127.0.0.1", port))
        viewer.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        ready.register(viewer, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            if key.fileobj.recv(2**20):  # type: ignore[union-attr]
                seen.add(key.fd)
        if len(seen) == VIEWERS:
            told.set()


def _looks(service: Service, looks: int = 200, for_s: float = 5.0) -> list[Row]:
    """CPU time of the page while it is watched, and of one look at the server, once a second."""
    with _watched(service) as page:
        before_s = cpu_seconds(page)
        time.sleep(for_s)
        core, megabytes = (cpu_seconds(page) - before_s) / for_s, resident_mb(page)
    with connect(service.settings) as client:
        source = Snapshots(service.settings, Looker(client, service.settings).look)
        source.make()
        before_s, own_s = cpu_seconds(service.server_pid), time.process_time()
        for _ in range(looks):
            source.make()
        server_s, own_s = cpu_seconds(service.server_pid) - before_s, time.process_time() - own_s
    times_ms = {"look, server ms": server_s / looks * 1e3, "look, page ms": own_s / looks * 1e3}
    return [{"page with viewers": VIEWERS, "share of a core": f"{core:.1%}", "MB": megabytes, **times_ms}]


PARTS = {
    "stages": Part(
        off=Variant(environment={"AMN_STAGES": "0"}), variants=lambda _: {"on": Variant()}, beside=_counting
    ),
    "shadow": Part(variants=_sampling),
    "traces": Part(variants=_tracing, settle_s=_EXPORT_S + 0.1, beside=_traced_producers),
    "page": Part(variants=lambda _: {f"{VIEWERS} viewers": Variant(during=_watched)}, beside=_looks),
}
