"""Processes that ended badly, as the server is told: why, and how many of a pool's workers."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import structlog

from producer.errors import QueueError
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.clock import time_ms
from producer.transport.connection import connect, driver_errors

_LOG = structlog.get_logger("amn.pool")
_KEPT, _KEPT_S, _TEXT_MAX = 20, 3_600, 500
#: A server that is away is not asked each time that the pool looks after its workers.
_RETRY_S = 5.0
PREFIX = "worker_died:"


@contextmanager
def last_words(settings: ProducerSettings, kind: str) -> Iterator[None]:
    """Notes the error that ends the block, and raises it all the same."""
    try:
        yield
    except Exception as error:
        with suppress(QueueError):  # a server that is away is what the error says, as a rule
            _note(settings, kind, str(error) or repr(error))
        raise


def _note(settings: ProducerSettings, kind: str, text: str) -> None:
    key, client = Keys(settings.queue).failures, connect(settings, retries=0)
    try:
        with driver_errors(settings.url):
            said = {"kind": kind, "host": socket.gethostname(), "at_ms": int(time_ms(client.time()))}
            with client.pipeline(transaction=True) as pipe:
                pipe.lpush(key, json.dumps(said | {"text": text[:_TEXT_MAX]}))
                pipe.ltrim(key, 0, _KEPT - 1)
                pipe.expire(key, _KEPT_S)
                pipe.execute()
    finally:
        client.close()


class Deaths:
    """Counts `worker_died:<kind>` in the queue's statistics; never in the way of the pool."""

    def __init__(self, url: str, queue: str) -> None:
        settings = ProducerSettings.from_environment(url=url, queue=queue)
        self._url, self._stats = settings.url, Keys(queue).stats
        self._client = connect(settings, retries=0)
        self._told: Counter[str] = Counter()
        self._again_at_s = 0.0

    def tell(self, died: Mapping[str, int]) -> None:
        """Adds what is new since the last call; later, when the server is away."""
        new = Counter(died) - self._told
        if not new or time.monotonic() < self._again_at_s:
            return
        try:
            with driver_errors(self._url):
                for kind, count in new.items():
                    self._client.hincrby(self._stats, PREFIX + kind, count)
                    self._told[kind] += count
        except QueueError as error:
            self._again_at_s = time.monotonic() + _RETRY_S
            _LOG.warning("deaths_not_counted", error=str(error))

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()
