"""Processes that ended badly, as the server is told: why, and how many of a pool's workers."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import redis
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
    client = connect(settings, retries=0)
    try:
        with driver_errors(settings.url):
            _noted(client, Keys(settings.queue).failures, kind, text)
    finally:
        client.close()


def _noted(client: redis.Redis, key: str, kind: str, text: str) -> str:
    """Adds a note, and returns it as it is stored."""
    said = {"kind": kind, "host": socket.gethostname(), "at_ms": int(time_ms(client.time()))}
    stored = json.dumps(said | {"text": text[:_TEXT_MAX]})
    with client.pipeline(transaction=True) as pipe:
        pipe.lpush(key, stored)
        pipe.ltrim(key, 0, _KEPT - 1)
        pipe.expire(key, _KEPT_S)
        pipe.execute()
    return stored


class Deaths:
    """Counts `worker_died:<kind>` in the queue's statistics, and notes who is silent; never in the way of
    the pool."""

    def __init__(self, url: str, queue: str) -> None:
        settings = ProducerSettings.from_environment(url=url, queue=queue)
        self._url, self._stats, self._failures = settings.url, Keys(queue).stats, Keys(queue).failures
        self._silent: dict[int, str] = {}
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

    def show_silent(self, silent: Mapping[int, str]) -> None:
        """Notes workers that give no sign, kinds by process id, until they give one or are replaced."""
        if silent.keys() == self._silent.keys() or time.monotonic() < self._again_at_s:
            return
        try:
            with driver_errors(self._url):
                for pid in self._silent.keys() - silent.keys():
                    self._client.lrem(self._failures, 0, self._silent[pid])
                    del self._silent[pid]
                for pid in silent.keys() - self._silent.keys():
                    text = f"process {pid} gives no sign: stopped, or hanging in native code"
                    self._silent[pid] = _noted(self._client, self._failures, silent[pid], text)
        except QueueError as error:
            self._again_at_s = time.monotonic() + _RETRY_S
            _LOG.warning("silence_not_noted", error=str(error))

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()
