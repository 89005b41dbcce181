"""Tells the queue how many of a pool's workers died, so that a crash loop can be seen and alerted on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

import structlog

from producer.errors import QueueError
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.connection import connect, driver_errors

_LOG = structlog.get_logger("amn.pool")
#: A server that is away is not asked with every look at the workers.
_RETRY_S = 5.0
PREFIX = "worker_died:"


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
