"""python -m bench limits: what the same bytes cost without a queue, and the model without Redis.

A loop of bare commands on a unix socket, one process on core 0, the server on core 1 (Linux): enqueue is
64 XADD a write, drain is a read of 256, then 256 XADD of an answer's bytes, one XACK and one XDEL in one
write. No script, no lease, no checks, no model. What our worker adds to the sum of both is the queue.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from bench.batch import CALL_ROWS, alone_us
from bench.machine import cpu_seconds, environment, pin, spread
from bench.micro import example_reply
from bench.report import out_option, write
from bench.service import SUBMIT_COUNT, sample_contexts
from ops.local.server import Server, ServerSettings
from producer import Options, ProducerSettings
from producer.protocol.wire import encode_reply
from producer.session.requests import prepare
from producer.transport.connection import connect
from producer.transport.link import Link

STEPS = ("enqueue", "drain")


@click.command("limits")
@click.option("--requests", default=20_480, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@out_option
def command(requests: int, repeats: int, out: Path) -> None:
    """Bare Redis and the bare model; writes limits.json and limits.md."""
    surroundings = environment()
    context = sample_contexts()[:1]
    request = prepare(context[0], Options(), "client", ProducerSettings()).payload
    reply = encode_reply(example_reply(context))
    with tempfile.TemporaryDirectory() as folder, Server(ServerSettings(data=Path(folder))) as server:
        client = connect(ProducerSettings(url=server.url))
        pid = int(client.info("server")["process_id"])
        everywhere = set(range(os.cpu_count() or 1))
        pin(pid, {1})
        pin(os.getpid(), {0})
        link = Link(client)
        runs = [bare(link, pid, requests, request, reply) for _ in range(repeats)]
        link.close()
        client.close()
        pin(os.getpid(), everywhere)
    report = {
        "environment": surroundings,
        "requests": requests,
        "repeats": repeats,
        "bytes": {"request": len(request), "answer": len(reply)},
        "bare": {step: {f: spread([run[step][f] for run in runs]) for f in runs[0][step]} for step in STEPS},
        "alone_us": alone_us(),
    }
    write(out, "limits", report, rows(report), note(report))


def bare(link: Link, server: int, count: int, request: bytes, reply: bytes) -> dict[str, dict[str, float]]:
    """One fill and one drain."""
    link.call("DEL", "bare", "answers")
    link.call("XGROUP", "CREATE", "bare", "workers", "0", "MKSTREAM")
    adds = [("XADD", "bare", "*", "request", request)] * SUBMIT_COUNT

    def fill() -> None:
        for _ in range(count // SUBMIT_COUNT):
            link.each(adds)

    def drain() -> None:
        left = count
        while left:
            found = link.call(
                "XREADGROUP", "GROUP", "workers", "w", "COUNT", CALL_ROWS, "STREAMS", "bare", ">"
            )
            streams = found.items() if isinstance(found, dict) else found
            ids = [row[0] for _, rows in streams for row in rows]
            answers = [("XADD", "answers", "*", "reply", reply)] * len(ids)
            link.each([*answers, ("XACK", "bare", "workers", *ids), ("XDEL", "bare", *ids)])
            left -= len(ids)

    return {"enqueue": _timed(fill, server, count), "drain": _timed(drain, server, count)}


def _timed(call: Callable[[], None], server: int, count: int) -> dict[str, float]:
    server_s, own_s, started_s = cpu_seconds(server), time.process_time(), time.perf_counter()
    call()
    return {
        "per_s": count / (time.perf_counter() - started_s),
        "client_us": (time.process_time() - own_s) / count * 1e6,
        "server_us": (cpu_seconds(server) - server_s) / count * 1e6,
    }


def rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the bare steps, the model, and the sum of the drain and the model."""
    alone = report["alone_us"]
    together = report["bare"]["drain"]["client_us"]["median"] + alone
    found = [
        {"what": f"bare Redis, {step}", **{text: row[figure] for figure, text in _SHOWN.items()}}
        for step, row in report["bare"].items()
    ]
    for what, us in (
        (f"model and gate alone, batches of {CALL_ROWS}", alone),
        ("bare drain, model and gate, one core after the other", together),
    ):
        found.append({"what": what, "a second": 1e6 / us, "client CPU, us a request": us})
    return found


def note(report: Mapping[str, Any]) -> str:
    """Return what the rows are."""
    sizes = report["bytes"]
    return (
        f"{sizes['request']:,} bytes a request, {sizes['answer']:,} an answer; {report['repeats']} repeats."
    )


_SHOWN = {
    "per_s": "a second",
    "client_us": "client CPU, us a request",
    "server_us": "server CPU, us a request",
}
