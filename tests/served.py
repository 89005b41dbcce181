"""An application of HTTP within the process of a test, by the server that the commands use."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from ops.web.serve import config, listen


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
