"""python -m bench capacity: what an escalated and a sampled request take, in the workers that end them.

The AMN worker is stopped while the queue is filled, then drains it with a fallback and a shadow worker
beside it. CPU a request is each worker's own time over the entries that it ended: who shares a core
with whom changes how long it takes, and not that. `amn capacity` reads this and other reports.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from bench.machine import cpu_seconds, environment, resident_mb, spread
from bench.micro import example_reply
from bench.report import out_option, write
from bench.service import Service, sample_contexts
from ops.clock import server_now_ms
from ops.health import streams, workers
from ops.sample import Sample
from producer import Options, ProducerSettings
from producer.keys import Keys
from producer.protocol.wire import encode_reply
from producer.session.requests import prepare

KINDS = ("fallback", "shadow")
_PATIENCE_S, _SAID_S = 60.0, 1.5


@click.command("capacity")
@click.option("--requests", default=12_000, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@out_option
def command(requests: int, repeats: int, out: Path) -> None:
    """Measure; writes capacity.json and capacity.md."""
    surroundings = environment()
    runs = []
    for repeat in range(repeats):
        click.echo(f"run {repeat + 1} of {repeats}", err=True)
        runs.append(measured(requests))
    kinds: dict[str, Any] = {
        kind: {name: spread([run[kind][name] for run in runs]) for name in runs[0][kind]} for kind in KINDS
    }
    context = sample_contexts()[:1]
    request = prepare(context[0], Options(), "client", ProducerSettings()).payload
    sizes = {"request": len(request), "answer": len(encode_reply(example_reply(context)))}
    report = {
        "environment": surroundings,
        "requests": requests,
        "repeats": repeats,
        "kinds": kinds,
        "bytes": sizes,
    }
    rows = [{"worker": kind, **kinds[kind]} for kind in KINDS]
    write(
        out,
        "capacity",
        report,
        rows,
        f"{requests:,} requests, {repeats} repeats, median (min, max). Bytes: {sizes}.",
    )


def measured(requests: int) -> dict[str, dict[str, float]]:
    """One run: by kind of worker the entries that it ended, its CPU an entry, and its memory."""
    sample = Sample.load(Path("artifacts/sample/sequences.npz"))
    with Service(fallback=True, shadow=True) as service:
        pids = {"fallback": service.fallbacks[0], "shadow": service.shadows[0]}
        _settle(service)
        before = {kind: (cpu_seconds(pid), _finished(service, kind)) for kind, pid in pids.items()}
        total, _ = service.fill(requests, options=lambda i: sample.options(i % len(sample), "bench"))
        service.drain(total)
        _settle(service)
        found = {}
        for kind, pid in pids.items():
            cpu_s, finished = before[kind]
            ended = _finished(service, kind) - finished
            cpu_us = (cpu_seconds(pid) - cpu_s) / ended * 1e6
            found[kind] = {"entries": float(ended), "cpu_us": cpu_us, "mb": resident_mb(pid)}
        return found


def _settle(service: Service) -> None:
    """Waits until nothing is left to do, and every worker has said so."""
    give_up_s = time.monotonic() + _PATIENCE_S
    while any(one.entries for one in streams.read(service.client, Keys(), 0).values()):
        if time.monotonic() > give_up_s:
            raise click.ClickException("entries still wait after a minute: has a worker ended?")
        time.sleep(0.05)
    time.sleep(_SAID_S)


def _finished(service: Service, kind: str) -> int:
    seen = workers.read(service.client, Keys(), server_now_ms(service.client))
    return sum(one.finished for one in seen if one.kind == kind)
