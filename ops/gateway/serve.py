"""Serves the gateway in this process until it is told to stop."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ops.gateway.app import Gateway
from ops.gateway.asking import Asker
from ops.gateway.readiness import look
from ops.gateway.settings import CONNECTIONS_MAX, DRAIN_S, READY_S, SERVER_MS_MAX
from ops.web import serve as web
from ops.web.serve import Serving
from ops.web.shared import Shared
from producer import AsyncProducer
from producer.settings import ProducerSettings
from producer.transport.connection import connect


def serve(
    settings: ProducerSettings, opened: socket.socket, beat: Callable[[], None], *, token: str = ""
) -> None:
    """Answers until SIGTERM or SIGINT; calls `beat` each second, and asks for a token where there is one."""
    settings = replace(settings, connect_timeout_ms=SERVER_MS_MAX, command_timeout_ms=SERVER_MS_MAX)
    producer = AsyncProducer(settings=settings)
    with connect(settings, retries=0) as client:
        gateway = Gateway(Asker(producer), Shared(partial(look, client, settings), READY_S), token)
        limits = Serving(beat=beat, connections_max=CONNECTIONS_MAX, drain_s=DRAIN_S, after=producer.close)
        web.serve(gateway, opened, limits)
