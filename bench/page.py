"""python -m bench page: what people who watch the page cost the service.

One AMN worker on a core of its own serves requests at a steady rate. Blocks without viewers and with them
take turns in the order A B B A, so that a machine that slows down favours neither. The page's process,
the viewers, the server and the producer share the other core.
"""

from __future__ import annotations

import multiprocessing
import os
import selectors
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from bench.machine import cpu_seconds, environment, pin, resident_mb
from bench.report import out_option, write
from bench.service import Service, listening, sample_contexts
from ops.page.look import Looker
from ops.page.snapshot import Snapshots
from producer import Options, Producer
from producer.transport.connection import connect

#: Requests of one call; they are submitted evenly, so many calls a second.
_AT_ONCE = 10
_LOOKS = 200
_SETTLE_S, _PATIENCE_S = 1.5, 30.0


@click.command("page")
@click.option("--viewers", default=50, show_default=True)
@click.option("--rate", default=1_000, show_default=True, help="Requests a second.")
@click.option("--block-s", default=5.0, show_default=True, help="Length of a block.")
@click.option("--repeats", default=4, show_default=True, help="A B B A.")
@out_option
def command(viewers: int, rate: int, block_s: float, repeats: int, out: Path) -> None:
    """Worker CPU a request with viewers and without, and what the page takes; writes page.json, page.md."""
    surroundings = environment()
    with (
        Service() as service,
        listening("dashboard", service.url) as (page, port),
        Producer(settings=service.settings) as producer,
    ):
        blocks: dict[int, list[float]] = {0: [], viewers: []}
        page_cpu_s = page_s = 0.0
        _block(service, producer, rate, block_s)  # warms up
        for count in (0, viewers, viewers, 0) * repeats:
            with _watching(port, count):
                before_s, began_s = cpu_seconds(page), time.perf_counter()
                blocks[count].append(_block(service, producer, rate, block_s))
                if count:
                    page_cpu_s += cpu_seconds(page) - before_s
                    page_s += time.perf_counter() - began_s
        row = _compared(blocks[0], blocks[viewers]) | {
            "page_core": f"{page_cpu_s / page_s:.1%}",
            "page_mb": resident_mb(page),
            **_looks(service),
        }
    report = {"environment": surroundings, "viewers": viewers, "rate_per_s": rate, "row": row}
    write(
        out,
        "page",
        report,
        [row],
        f"Worker CPU, us a request, at {rate:,} requests/s with {viewers} viewers.",
    )


def _compared(without: list[float], with_viewers: list[float]) -> dict[str, Any]:
    """Medians of both, and the change in each A B B A."""
    pairs = [(sum(without[i : i + 2]), sum(with_viewers[i : i + 2])) for i in range(0, len(without), 2)]
    changes = [some / none - 1 for none, some in pairs]
    return {
        "without_us": round(statistics.median(without), 1),
        "with_us": round(statistics.median(with_viewers), 1),
        "change": f"{statistics.median(changes):+.1%} ({min(changes):+.1%} to {max(changes):+.1%})",
    }


def _looks(service: Service) -> dict[str, float]:
    """CPU time of one look at the server, which takes place once a second: of the server, and of the page."""
    with connect(service.settings) as client:
        source = Snapshots(service.settings, Looker(client, service.settings).look)
        source.make()
        before_s, own_s = cpu_seconds(service.server_pid), time.process_time()
        for _ in range(_LOOKS):
            source.make()
        server_s, own_s = cpu_seconds(service.server_pid) - before_s, time.process_time() - own_s
    return {
        "look_server_ms": round(server_s / _LOOKS * 1000, 2),
        "look_page_ms": round(own_s / _LOOKS * 1000, 2),
    }


def _block(service: Service, producer: Producer, rate: int, for_s: float) -> float:
    """Sends at an even pace; returns the worker's CPU time of a request, microseconds."""
    contexts, options = sample_contexts(), Options(provisional=True)
    calls, before_s = int(rate * for_s / _AT_ONCE), cpu_seconds(service.pids[0])
    began_s, handles = time.perf_counter(), []
    for number in range(calls):
        time.sleep(max(began_s + number * _AT_ONCE / rate - time.perf_counter(), 0))
        first = number * _AT_ONCE % (len(contexts) - _AT_ONCE)
        handles += producer.submit_many(contexts[first : first + _AT_ONCE], options=options)
    for handle in handles:
        handle.result()
    return (cpu_seconds(service.pids[0]) - before_s) / len(handles) * 1e6


@contextmanager
def _watching(port: int, count: int) -> Iterator[None]:
    """So many viewers in a process of their own, which read each event and throw it away."""
    if count == 0:
        time.sleep(_SETTLE_S)
        yield
        return
    processes = multiprocessing.get_context("spawn")
    told = processes.Event()
    watching = processes.Process(target=_view, args=(port, count, told), daemon=True)
    watching.start()
    try:
        if not told.wait(_PATIENCE_S):
            raise click.ClickException(f"not all of {count} viewers were served within {_PATIENCE_S:.0f} s")
        yield
    finally:
        watching.terminate()
        watching.join()


def _view(port: int, count: int, told: Any) -> None:
    pin(os.getpid(), {1})
    os.nice(19)  # they are on other machines, as a rule
    seen: set[int] = set()
    ready = selectors.DefaultSelector()
    for _ in range(count):
        viewer = socket.create_connection(("127.0.0.1", port))
        viewer.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        ready.register(viewer, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            if key.fileobj.recv(2**20):  # type: ignore[union-attr]
                seen.add(key.fd)
        if len(seen) == count:
            told.set()
