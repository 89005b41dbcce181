"""Serves the gateway in this process until it is told to stop."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import redis

from ops.gateway.app import Gateway
from ops.gateway.asking import Asker
from ops.gateway.settings import CONNECTIONS_MAX, DRAIN_S, READY_S, SERVER_MS_MAX
from ops.health import workers
from ops.health.workers import WorkerFacts
from ops.web import serve as web
from ops.web.shared import Shared
from producer import AsyncProducer
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.clock import time_ms
from producer.transport.connection import connect, driver_errors


def serve(
    settings: ProducerSettings, opened: socket.socket, beat: Callable[[], None], *, token: str = ""
) -> None:
    """Answers until SIGTERM or SIGINT; calls `beat` each second, and asks for a token where there is one."""
    settings = replace(settings, connect_timeout_ms=SERVER_MS_MAX, command_timeout_ms=SERVER_MS_MAX)
    producer = AsyncProducer(settings=settings)
    with connect(settings, retries=0) as client:
        gateway = Gateway(Asker(producer), Shared(partial(working, client, settings), READY_S), token)
        end = producer.close
        web.serve(gateway, opened, beat, connections_max=CONNECTIONS_MAX, drain_s=DRAIN_S, after=end)


def working(client: redis.Redis, settings: ProducerSettings) -> list[WorkerFacts]:
    """The AMN workers that live and make progress."""
    with driver_errors(settings.url):
        found = workers.read(client, Keys(settings.queue), time_ms(client.time()))
    return [one for one in found if one.kind == "amn" and not one.stuck]
