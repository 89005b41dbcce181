"""Serves the page in this process until it is told to stop."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import redis

from amn.output import strict_json
from ops.drift.service import history
from ops.page.actions import Actions
from ops.page.app import Sources, page
from ops.page.feed import Feed
from ops.page.look import Looker
from ops.page.snapshot import Snapshots
from ops.web import serve as web
from ops.web.serve import Serving
from ops.web.shared import Shared
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.connection import connect, driver_errors

_T = TypeVar("_T")
#: Connections at a time; more are refused.
CONNECTIONS_MAX = 256
#: A page is to say that the server is away, and not to wait for it.
_SERVER_MS_MAX = 2_000
_HISTORY_S = 10.0


def serve(
    server: ProducerSettings,
    opened: socket.socket,
    beat: Callable[[], None],
    *,
    token: str = "",
    names: tuple[str, ...] = (),
    actions: bool = False,
) -> None:
    """Answers until SIGTERM or SIGINT.

    Args:
        beat: Called each second.
        token: Asked for where it is not empty.
        names: Host names under which the page may be asked for, beside addresses and localhost.
        actions: True if it may change something.
    """
    server = replace(server, connect_timeout_ms=_SERVER_MS_MAX, command_timeout_ms=_SERVER_MS_MAX)
    with connect(server) as client:
        sources = _sources(client, server, actions=actions)
        limits = Serving(beat=beat, connections_max=CONNECTIONS_MAX, drain_s=3, before=sources.feed.close)
        web.serve(page(sources, token=token, names=names), opened, limits)


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
        history=Shared(translated(past), _HISTORY_S),
        letter=translated(looker.letter),
        actions=Actions(client, server) if actions else None,
    )
