"""Serves the page in this process until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import redis
import uvicorn
from starlette.types import ASGIApp

from amn.output import strict_json
from ops.drift.service import history
from ops.errors import ServerFailed
from ops.local.beside import unless_ignored
from ops.page.actions import Actions
from ops.page.app import Sources, page
from ops.page.connections import CONNECTIONS_MAX, TimedConnection
from ops.page.feed import Feed
from ops.page.look import Looker
from ops.page.snapshot import Snapshots
from ops.settings import PAGE_PORT
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.connection import connect, driver_errors

_T = TypeVar("_T")
#: The kernel ends a connection whose peer takes nothing for so long.
_UNSENT_MS_MAX, _UNSENT_BYTES_MAX = 15_000, 64 * 1024
#: A page is to say that the server is away, and not to wait for it.
_SERVER_MS_MAX = 2_000
_HISTORY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSettings:
    """The settings of the page.

    Attributes:
        host, port: Address to listen on; port 0 is any that is free.
        token: Asked for where it is not empty.
        names: Host names under which it may be asked for, beside addresses and localhost.
        actions: True if it may change something.
    """

    host: str = "127.0.0.1"
    port: int = PAGE_PORT
    token: str = field(default="", repr=False)
    names: tuple[str, ...] = ()
    actions: bool = False


def listen(settings: PageSettings) -> socket.socket:
    """Opens the address.

    Raises:
        ServerFailed: It cannot be listened on.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit both: little waits for a viewer who takes nothing, and not for ever.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNSENT_BYTES_MAX)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNSENT_MS_MAX)
        opened.bind(address)
        opened.listen()
    except OSError as error:
        raise ServerFailed(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); "
            "choose another --host or --port"
        ) from error
    return opened


def serve(
    settings: PageSettings, server: ProducerSettings, opened: socket.socket, beat: Callable[[], None]
) -> None:
    """Answers until SIGTERM or SIGINT; calls `beat` each second."""
    server = replace(server, connect_timeout_ms=_SERVER_MS_MAX, command_timeout_ms=_SERVER_MS_MAX)
    with connect(server) as client:
        sources = _sources(client, server, actions=settings.actions)
        asgi = page(sources, token=settings.token, names=settings.names)
        serving = _Server(config(asgi), sources.feed, beat)
        unless_ignored(serving.handle_exit, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        serving.run(sockets=[opened])


def config(asgi: ASGIApp) -> uvicorn.Config:
    """The settings of the server of HTTP."""
    return uvicorn.Config(
        asgi,
        http=TimedConnection,
        ws="none",
        log_config=None,
        log_level="critical",  # what goes wrong in the page, the page logs itself
        access_log=False,
        lifespan="off",
        server_header=False,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_graceful_shutdown=3,
    )


def _sources(client: redis.Redis, server: ProducerSettings, *, actions: bool) -> Sources:
    looker, keys = Looker(client, server), Keys(server.queue)

    def translated(ask: Callable[..., _T]) -> Callable[..., _T]:
        def asked(*words: Any) -> _T:
            with driver_errors(server.url):
                return ask(*words)

        return asked

    def past() -> bytes:
        return strict_json(history.columns(history.read(client, keys)), compact=True).encode()

    return Sources(
        feed=Feed(Snapshots(server, translated(looker.look), actions=actions).make),
        history=Shared(translated(past)),
        letter=translated(looker.letter),
        actions=Actions(client, server) if actions else None,
    )


class Shared:
    """An answer that is made anew when it is older than `_HISTORY_S`, whoever asks."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make, self._lock = make, asyncio.Lock()
        self._made_at_s, self._body = float("-inf"), b""

    async def __call__(self) -> bytes:
        """Returns it."""
        async with self._lock:
            if time.monotonic() - self._made_at_s >= _HISTORY_S:
                self._body, self._made_at_s = await asyncio.to_thread(self._make), time.monotonic()
            return self._body


class _Server(uvicorn.Server):
    """Lets viewers go before it waits for them, and beats."""

    def __init__(self, config: uvicorn.Config, feed: Feed, beat: Callable[[], None]) -> None:
        super().__init__(config)
        self._feed, self._beat = feed, beat

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if counter % 10 == 0:
            self._beat()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the streams of events, then everything else."""
        await self._feed.close()
        await super().shutdown(sockets)
