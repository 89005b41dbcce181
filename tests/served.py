"""What answers HTTP: an application within the process of a test, and a process of a command."""

from __future__ import annotations

import asyncio
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from ops.web.serve import config, listen
from workers.pool.child import our_environment, our_python


@contextmanager
def served(app: Any, host: str = "127.0.0.1", connections_max: int = 64) -> Iterator[int]:
    """Yields its port."""
    opened = listen(host, 0)
    server = uvicorn.Server(config(app, connections_max=connections_max, drain_s=3))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([opened])))
    thread.start()
    try:
        yield opened.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        opened.close()
    assert not thread.is_alive()


@contextmanager
def listening(*words: str, **environment: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """A process of `amn` with these words, on a port that is free, and a client of it."""
    command = our_python("ops.cli", *words, "--port", "0")
    process = subprocess.Popen(command, env=our_environment(**environment), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        address = process.stderr.readline().strip()
        assert re.match(r"http://127\.0\.0\.1:\d+", address), address + process.stderr.read()
        with httpx.Client(base_url=address.removesuffix("/metrics"), trust_env=False, timeout=30) as client:
            yield client, process
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()
