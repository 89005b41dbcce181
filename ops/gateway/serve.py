"""Serves the gateway in this process until it is told to stop."""

from __future__ import annotations

import ctypes
import gc
import socket
from collections.abc import Callable
from dataclasses import replace
from itertools import count

from ops.gateway.app import Gateway
from ops.gateway.asking import Asker
from ops.gateway.readiness import Looks
from ops.gateway.settings import CONNECTIONS_MAX, DRAIN_S, READY_S, SERVER_MS_MAX
from ops.web import serve as web
from ops.web.shared import Shared
from producer import AsyncProducer
from producer.settings import ProducerSettings


def serve(
    settings: ProducerSettings,
    opened: socket.socket,
    beat: Callable[[], None],
    *,
    token: str = "",
    partitions: int | None = None,
) -> None:
    """Answers until SIGTERM or SIGINT; calls `beat` each second, and asks for a token where there is one.

    Args:
        partitions: How many the queue has; None for a queue without.
    """
    settings = replace(settings, connect_timeout_ms=SERVER_MS_MAX, command_timeout_ms=SERVER_MS_MAX)
    producer = AsyncProducer(settings=settings, partitions=partitions)
    with Looks([channel.settings for channel in producer.channels]) as look:
        gateway = Gateway(Asker(producer), Shared(look, READY_S), token)
        end = producer.close
        web.serve(gateway, opened, tidying(beat), connections_max=CONNECTIONS_MAX, drain_s=DRAIN_S, after=end)


def tidying(beat: Callable[[], None]) -> Callable[[], None]:
    """Calls `beat`; every tenth time, it also gives the system back what large bodies took.

    A connection that broke leaves a circle of objects that holds its bodies. Few objects are made here, so
    that Python looks for circles seldom. And the allocator of glibc keeps freed blocks of this size.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    calls = count(1)
    gc.collect()
    gc.freeze()  # what is there now stays, and is looked at no more

    def called() -> None:
        beat()
        if not next(calls) % 10:
            gc.collect()
            if trim is not None:
                trim(0)

    return called
