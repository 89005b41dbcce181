"""Serves an application in this process until it is told to stop."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Awaitable, Callable

import uvicorn
from starlette.types import ASGIApp

from ops.errors import ServerFailed
from ops.local.beside import unless_ignored
from ops.web.protocol import LimitedProtocol

#: The kernel ends a connection whose peer takes nothing for so long.
_UNSENT_MS_MAX, _UNSENT_BYTES_MAX = 15_000, 64 * 1024
#: A connection without a request is closed after so long; clients keep theirs for as long as they can.
_IDLE_S_MAX = 60


Ending = Callable[[], Awaitable[None]]


async def _nothing() -> None:
    """Nothing is to be done."""


def listen(host: str, port: int) -> socket.socket:
    """Opens the address; port 0 is any that is free.

    Raises:
        ServerFailed: It cannot be listened on.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With its protocol named: only then does asyncio send small parts of an answer at once (TCP_NODELAY).
        opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit both: little waits for a client who takes nothing, and not for ever.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNSENT_BYTES_MAX)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNSENT_MS_MAX)
        opened.bind(address)
        opened.listen()
    except OSError as error:
        raise ServerFailed(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --host or --port"
        ) from error
    return opened


def serve(
    app: ASGIApp,
    opened: socket.socket,
    beat: Callable[[], None],
    *,
    connections_max: int,
    drain_s: int,
    before: Ending = _nothing,
    after: Ending = _nothing,
) -> None:
    """Answers until SIGTERM or SIGINT.

    Args:
        beat: Called each second, as a sign of life.
        connections_max: Connections at a time; one that waits for a request makes room for another.
        drain_s: How long the requests of clients may go on after the signal to stop.
        before, after: Awaited before requests are waited for at the end, and when all have ended.
    """
    server = _Server(config(app, connections_max=connections_max, drain_s=drain_s), beat, before, after)
    unless_ignored(server.handle_exit, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    server.run(sockets=[opened])


def config(app: ASGIApp, *, connections_max: int, drain_s: int) -> uvicorn.Config:
    """The settings of the server of HTTP; the arguments are those of `serve`."""
    return uvicorn.Config(
        app,
        http=LimitedProtocol,
        ws="none",
        log_config=None,
        log_level="critical",  # an application of ours logs its own errors
        access_log=False,
        lifespan="off",
        server_header=False,
        # Every local program can send X-Forwarded-For: it is believed only where that was asked for.
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
        limit_concurrency=connections_max,
        timeout_graceful_shutdown=drain_s,
        timeout_keep_alive=_IDLE_S_MAX,
    )


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, beat: Callable[[], None], before: Ending, after: Ending
    ) -> None:
        super().__init__(config)
        self._beat, self._before, self._after = beat, before, after

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if counter % 10 == 0:
            self._beat()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Does what is to be done before, waits for the requests, and does what is to be done after."""
        await self._before()
        await super().shutdown(sockets)
        await self._after()
