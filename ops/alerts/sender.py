"""The sender: takes messages up, makes the attempts, and watches the judge and its own deliveries."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import redis
import structlog

from ops.alerts.config import Sinks
from ops.alerts.direct import Direct
from ops.alerts.outbox import Attempt, Outbox
from ops.alerts.store import Evaluator, apply_as
from ops.alerts.watch import watch
from ops.clock import server_now_ms
from ops.leader import Leadership
from producer.errors import ServerError
from producer.keys import Keys
from producer.transport.connection import driver_errors

_LOG = structlog.get_logger("amn.alerts")
_TICK_S, _EVERY_MS = 1.0, 60_000
#: Longer than one attempt (15 s), so that a sender that waits for a sink keeps the lead.
_LEASE_MS = 20_000
#: No attempt begins later in a tick, so that the server and the judge are watched all the same.
_BUSY_S = 10.0
_HEARTBEAT_KEPT_S = 90 * 24 * 3600

#: Makes one attempt.
Deliver = Callable[[Attempt], Any]
#: Repeats the state to the sink of this name.
Repeat = Callable[[str], Any]


class Sender:
    """One sender. A single one of several leads and delivers; any of them may die at any point."""

    def __init__(
        self, client: redis.Redis, keys: Keys, sinks: Sinks, deliver: Deliver, repeat: Repeat
    ) -> None:
        self._client, self._keys, self._sinks = client, keys, sinks
        self._deliver, self._repeat = deliver, repeat
        self._outbox = Outbox(client, keys)
        self._leadership = Leadership(client, keys, _LEASE_MS, prefix=keys.alerts_prefix)
        self._looked_at_ms = self._ticked_at_ms = 0
        self._stopping = threading.Event()

    def tick(self, now_ms: int | None = None) -> int:
        """Delivers what is due; once a minute also looks at the judge and at its own deliveries.

        Returns:
            Attempts made.
        """
        fence = self._leadership.lead()
        if not fence:
            self._ticked_at_ms = 0
            return 0
        now_ms = server_now_ms(self._client) if now_ms is None else now_ms
        before_ms = self._ticked_at_ms or int(
            cast("bytes | None", self._client.get(looked_key(self._keys))) or 0
        )
        if before_ms > now_ms:
            _LOG.warning("server_clock_went_back", seconds=(before_ms - now_ms) // 1000)
            self._outbox.rewind(before_ms - now_ms)
        self._ticked_at_ms = now_ms
        if not 0 <= now_ms - self._looked_at_ms < _EVERY_MS:
            self._look(fence, now_ms)
            self._looked_at_ms = now_ms
        self._outbox.fan_out(self._sinks.last, now_ms)
        for alert in self._outbox.second(now_ms):
            _LOG.warning("alert_goes_to_secondary_sinks", alert=alert)
        return self._deliver_due(now_ms)

    def _deliver_due(self, now_ms: int) -> int:
        """Makes one attempt after the other, and stops between two when it stops or leads no more."""
        made, until_s = 0, time.monotonic() + _BUSY_S
        while not self._stopping.is_set() and time.monotonic() < until_s:
            attempt = self._outbox.lease(self._sinks.last, now_ms)
            if attempt is None:
                break
            self._deliver(attempt)
            made += 1
            if not self._leadership.lead():
                break
        return made

    def resign(self) -> None:
        """Lets another sender lead at once. Idempotent."""
        self._leadership.resign()

    def run(self, stopping: threading.Event, url: str) -> None:
        """Ticks until told to stop; waits for the server when it is away, and tells of that by itself."""
        self._stopping = stopping
        down, direct = False, Direct(self._keys.queue, self._sinks)
        while not stopping.is_set():
            try:
                with driver_errors(url):
                    self.tick()
                direct.well()
                down = False
            except ServerError as error:
                if not down:
                    _LOG.warning("sender_waits_for_server", error=str(error))
                direct.failed(str(error))
                down = True
            stopping.wait(_TICK_S)
        try:
            with driver_errors(url):
                self.resign()
        except ServerError:
            pass  # the lease runs out by itself

    def _look(self, fence: int, now_ms: int) -> None:
        config = self._sinks.now()
        settings = config.settings
        findings = watch(self._client, self._keys, self._outbox, now_ms, settings, self._sinks.trouble)
        evaluator = Evaluator("sender", self._keys.alerts_prefix + "leader", fence)
        apply_as(self._client, self._keys, findings, now_ms, evaluator, settings)
        self._client.set(looked_key(self._keys), now_ms, ex=_HEARTBEAT_KEPT_S)
        for sink in config.sinks.values():
            if sink.repeats_state:
                self._repeat(sink.name)


def looked_key(keys: Keys) -> str:
    """The sender's heartbeat, epoch milliseconds."""
    return keys.alerts_prefix + "looked_ms"
