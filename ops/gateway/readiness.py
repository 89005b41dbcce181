"""Asks all partitions of the queue together, within one limit of time, if they would answer a request."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Self

import redis

from ops.gateway.settings import LOOK_MS_MAX
from ops.health import workers
from ops.health.workers import WorkerFacts
from producer.errors import ServerError
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.clock import time_ms
from producer.transport.connection import connect, driver_errors

#: By the queue's or partition's name, the AMN workers that live and make progress, or why there are none.
Readiness = dict[str, list[WorkerFacts] | str]


class Looks:
    """Looks at the partitions, again and again. A context manager.

    Args:
        parts: The settings of each partition, or of the one queue.
    """

    def __init__(self, parts: Sequence[ProducerSettings]) -> None:
        self._undo = ExitStack()
        self._parts = [
            replace(part, connect_timeout_ms=LOOK_MS_MAX, command_timeout_ms=LOOK_MS_MAX) for part in parts
        ]
        self._asked: dict[str, Future[list[WorkerFacts]]] = {}

    def __enter__(self) -> Self:
        # One for each: those that are away would keep fewer from the others. They start as they are needed.
        self._pool = self._undo.enter_context(ThreadPoolExecutor(len(self._parts), "amn-ready"))
        clients = [self._undo.enter_context(connect(part)) for part in self._parts]
        pairs = zip(self._parts, clients, strict=True)
        self._asks = {part.queue: partial(_working, client, part) for part, client in pairs}
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def __call__(self) -> Readiness:
        """Asks each partition, except those that have not answered an earlier look yet."""
        for queue, ask in self._asks.items():
            if queue not in self._asked or self._asked[queue].done():
                self._asked[queue] = self._pool.submit(ask)
        wait(self._asked.values(), LOOK_MS_MAX / 1000)
        return {queue: _outcome(queue, one) for queue, one in self._asked.items()}


def _outcome(queue: str, asked: Future[list[WorkerFacts]]) -> list[WorkerFacts] | str:
    try:
        return asked.result(0) or f"no AMN worker of queue {queue} lives; requests wait for one"
    except TimeoutError:
        return f"the server of queue {queue} did not answer within {LOOK_MS_MAX} ms"
    except ServerError as error:
        return str(error)


def _working(client: redis.Redis, part: ProducerSettings) -> list[WorkerFacts]:
    with driver_errors(part.url):
        known = workers.read(client, Keys(part.queue), time_ms(client.time()))
    return [one for one in known if one.kind == "amn" and not one.stuck]
