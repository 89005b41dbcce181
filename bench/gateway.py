"""python -m bench gateway: what the gateway adds to a request, and how many contexts it passes in batches.

The same contexts go straight to the queue and through the gateway, in turns, from one event loop. One AMN
worker has a core of its own; server, gateways and clients share the other one. `http` is an address of the
gateway that asks nobody: what HTTP costs by itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.lone import unpack
from bench.machine import cpu_seconds, environment, resident_mb
from bench.report import out_option, write
from bench.service import Service, listening, sample_contexts
from producer import AsyncProducer

Ask = Callable[[int], Awaitable[object]]
_LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
_BATCH = 256
_CONNECTIONS = 16


@click.command("gateway")
@click.option("--rate", default=500, show_default=True, help="Requests a second, evenly spaced.")
@click.option("--block-s", default=4.0, show_default=True, help="Length of a block.")
@click.option("--repeats", default=2, show_default=True, help="Of all blocks, in turns.")
@click.option("--against", help="A commit whose gateway takes turns with this one; it is unpacked and built.")
@out_option
def command(rate: int, block_s: float, repeats: int, against: str | None, out: Path) -> None:
    """Latency, CPU and throughput with the gateway and without; writes gateway.json, gateway.md."""
    surroundings = environment()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if against is not None:
            unpack(against, folder)
        service = stack.enter_context(Service())
        gateways = {"": stack.enter_context(listening("gateway", service.url))}
        if against is not None:
            gateways[f", {against}"] = stack.enter_context(listening("gateway", service.url, folder))
        rows = asyncio.run(_Measured(service, gateways).rows(rate, block_s, repeats))
        megabytes = resident_mb(gateways[""][0])
    report = {"environment": surroundings, "rate_per_s": rate, "gateway_mb": megabytes, "rows": rows}
    said = f"Milliseconds from due to answered, evenly spaced at {rate} a second and one at a time; "
    write(out, "gateway", report, rows, f"{said}batches of {_BATCH}. The gateway takes {megabytes} MB.")


class _Client:
    """Keep-alive connections, each with one request at a time."""

    def __init__(self, port: int, bodies: list[bytes]) -> None:
        self._port, self._bodies = port, bodies
        self._opened = 0
        self._free: asyncio.Queue[Any] = asyncio.Queue()

    async def ask(self, number: int) -> bytes:
        """Sends a request; returns the body of its answer."""
        if self._opened < _CONNECTIONS and self._free.empty():
            self._opened += 1
            connection = await asyncio.open_connection("127.0.0.1", self._port, limit=2**24)
        else:
            connection = await self._free.get()
        reader, writer = connection
        writer.write(self._bodies[number % len(self._bodies)])
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise click.ClickException(head.decode())
        size = int(head.lower().split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
        body: bytes = await reader.readexactly(size)
        self._free.put_nowait(connection)
        return body


def _requests(contexts: Any, *, binary: bool) -> list[bytes]:
    """Whole requests, one for each row of the contexts; all outputs come in the form of the input."""
    found = []
    for one in contexts:
        tensor = {"name": "context", "datatype": "FP32", "shape": list(one.shape)}
        data = {"parameters": {"binary_data_size": one.nbytes}} if binary else {"data": one.ravel().tolist()}
        message = {"inputs": [tensor | data], "parameters": {"binary_data_output": binary}}
        head = json.dumps(message).encode()
        body = head + one.tobytes() if binary else head
        lines = b"POST /v2/models/amn/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n" % len(body)
        lines += b"Inference-Header-Content-Length: %d\r\n" % len(head) if binary else b""
        found.append(lines + b"\r\n" + body)
    return found


class _Measured:
    """Turns of all ways; gateways are a process and its port, by what is said behind their ways."""

    def __init__(self, service: Service, gateways: dict[str, tuple[int, int]]) -> None:
        self._service, self._gateways = service, gateways

    async def rows(self, rate: int, block_s: float, repeats: int) -> list[dict[str, Any]]:
        """A row for each way."""
        contexts = np.ascontiguousarray(sample_contexts()[: 2 * _BATCH], np.float32)
        batches = contexts.reshape(2, _BATCH, 5, 768)
        bodies = {"http": [_LIVE], "binary": _requests(contexts, binary=True)}
        bodies["json"] = _requests(contexts, binary=False)
        async with AsyncProducer(settings=self._service.settings) as producer:
            asks: dict[str, Ask] = {
                "without": lambda number: producer.predict(contexts[number % len(contexts)])
            }
            batched: dict[str, Ask] = {"without": lambda number: producer.predict_batch(batches[number % 2])}
            pids = {"without": os.getpid()}
            for said, (pid, port) in self._gateways.items():
                asks |= {name + said: _Client(port, some).ask for name, some in bodies.items()}
                pids |= {name + said: pid for name in bodies}
                batched["binary" + said] = _Client(port, _requests(batches, binary=True)).ask
            found: dict[str, list[dict[str, float]]] = {name: [] for name in asks}
            for turn in range(repeats):
                for name, ask in list(asks.items())[:: -1 if turn % 2 else 1]:
                    await _one_by_one(ask, 200)  # warms up
                    figures = {**await _paced(ask, pids[name], rate, block_s), **await _alone(ask)}
                    if name in batched:
                        figures["contexts_per_s"] = await _full(batched[name], block_s / 2)
                    found[name].append(figures)
        return [
            {"way": name} | {key: statistics.median(one[key] for one in blocks) for key in blocks[0]}
            for name, blocks in found.items()
        ]


async def _paced(ask: Ask, pid: int, rate: int, for_s: float) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    waits_ms: list[float] = []

    async def one(number: int, due_s: float) -> None:
        await ask(number)
        waits_ms.append((loop.time() - due_s) * 1000)

    count, cpu_s, began_s = int(rate * for_s), cpu_seconds(pid), loop.time()
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            due_s = began_s + number / rate
            await asyncio.sleep(max(due_s - loop.time(), 0))
            tasks.create_task(one(number, due_s))
    cpu_us = (cpu_seconds(pid) - cpu_s) / count * 1e6
    p50, p95 = np.percentile(waits_ms, [50, 95])
    return {"p50_ms": float(p50), "p95_ms": float(p95), "cpu_us": cpu_us}


async def _one_by_one(ask: Ask, count: int) -> list[float]:
    waits_ms = []
    for number in range(count):
        began_s = time.perf_counter()
        await ask(number)
        waits_ms.append((time.perf_counter() - began_s) * 1000)
    return waits_ms


async def _alone(ask: Ask) -> dict[str, float]:
    p50, p95 = np.percentile(await _one_by_one(ask, 1_000), [50, 95])
    return {"alone_p50_ms": float(p50), "alone_p95_ms": float(p95)}


async def _full(ask: Ask, for_s: float) -> float:
    """Contexts a second with four batches under way."""
    ends_s, count = time.perf_counter() + for_s, 0
    began_s = time.perf_counter()

    async def on_and_on(number: int) -> None:
        nonlocal count
        while time.perf_counter() < ends_s:
            await ask(number)
            count += _BATCH

    await asyncio.gather(*(on_and_on(number) for number in range(4)))
    return count / (time.perf_counter() - began_s)
