"""Serves the page in this process until it is told to stop."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

from amn.output import strict_json
from ops.drift.service import history
from ops.page.actions import Actions
from ops.page.app import page
from ops.page.feed import Feed
from ops.page.guard import Doorkeeper
from ops.page.look import Looker
from ops.page.snapshot import Snapshots
from ops.web import serve as web
from ops.web.shared import Shared
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.connection import connect, driver_errors

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
        looker, keys, ours = Looker(client, server), Keys(server.queue), driver_errors(server.url)

        def past() -> bytes:
            return strict_json(history.columns(history.read(client, keys)), compact=True).encode()

        feed = Feed(Snapshots(server, ours(looker.look), actions=actions).make)
        acts = Actions(client, server) if actions else None
        asgi = Doorkeeper(page(feed, Shared(ours(past), _HISTORY_S), ours(looker.letter), acts), token, names)
        web.serve(asgi, opened, beat, connections_max=CONNECTIONS_MAX, drain_s=3, before=feed.close)
