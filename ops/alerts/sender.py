"""The sender: compares what is with what its sinks acknowledged, and sends the difference.

Killed between the send and its receipt, it tells the same again under the same id.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace

import redis
import structlog

from ops.alerts.alert import Alert, Kind
from ops.alerts.attempts import Attempts, quiet
from ops.alerts.books import log, log_entry, put, read
from ops.alerts.config import AlertsConfig, Sinks
from ops.alerts.receipts import Owed, Receipt, compare
from ops.alerts.sinks.base import Message, Sink, SinkAnswer
from ops.alerts.store import KEPT_S, apply
from ops.alerts.watch import GIVEN_UP_FOR_MS, ServerDown, delivery_failed, judge_dead
from ops.clock import server_now_ms
from ops.drift.memory import Memory
from ops.leader import Command, Leadership, write
from producer.errors import ServerError
from producer.keys import Keys
from producer.transport.connection import driver_errors
from workers.pulse import Pulse

_LOG = structlog.get_logger("amn.alerts")
_TICK_S, _EVERY_MS = 1.0, 60_000
#: Longer than one attempt (15 s), so that a sender that waits for a sink keeps the lead.
_LEASE_MS = 20_000


class Sender:
    """One sender. A single one of several leads and sends; any of them may die at any point."""

    def __init__(
        self, client: redis.Redis, keys: Keys, sinks: Sinks, clock: Callable[[], int] | None = None
    ) -> None:
        quiet()
        self._client, self._keys, self._sinks = client, keys, sinks
        self._clock = clock or (lambda: server_now_ms(client))
        self._attempts = Attempts(keys.queue, sinks, self._clock)
        self._leadership = Leadership(client, keys, _LEASE_MS, prefix=keys.alerts_prefix)
        self._fence = self._looked_at_ms = 0
        self._beat: Callable[[], None] = lambda: None

    def tick(self) -> int:
        """Sends what is due; once a minute also looks at the judge and at its own deliveries.

        Returns:
            Attempts made.
        """
        self._fence = self._leadership.lead()
        if not self._fence:
            return 0
        now_ms = self._clock()
        if not 0 <= now_ms - self._looked_at_ms < _EVERY_MS:
            self._look(now_ms)
            self._looked_at_ms = now_ms
        books = read(self._client, self._keys)
        owed = compare(self._sinks.last, books.incidents, books.receipts, now_ms)
        changes = books.changes(self._keys, owed, now_ms)
        if changes and not self._write(changes):
            return 0
        return self._attempts.make(owed, now_ms, self._keep)

    def _keep(self, one: Owed, receipt: Receipt, said: dict[str, str | int]) -> bool:
        """Keeps a receipt, and the lead. A sender that led anew meanwhile compares anew first."""
        self._beat()
        entry = log_entry(self._keys, "dead" if receipt.gave_up else "sent", said) if said else []
        led = self._leadership.lead() == self._fence
        return led and self._write([put(self._keys, one.name, receipt)], entry)

    def _look(self, now_ms: int) -> None:
        config = self._sinks.now()
        books = read(self._client, self._keys)
        dead = log(self._client, self._keys, "dead", now_ms - GIVEN_UP_FOR_MS)
        heard_ms = Memory(self._client, self._keys).evaluated_at_ms()
        findings = [
            judge_dead(heard_ms, now_ms, config.settings),
            delivery_failed(books.undelivered(), dead, now_ms, config.settings, self._sinks.trouble),
        ]
        apply(
            self._client,
            self._keys,
            findings,
            now_ms=now_ms,
            fence=self._fence,
            settings=config.settings,
            source="sender",
        )
        self._client.set(self._keys.alerts_prefix + "looked_ms", now_ms, ex=KEPT_S)

    def _write(self, commands: Sequence[Command], book: Sequence[Command] = ()) -> bool:
        prefix = self._keys.alerts_prefix
        lives = ("EXPIRE", prefix + "receipts", KEPT_S)
        return write(self._client, prefix + "leader", self._fence, [*commands, lives], book)

    def resign(self) -> None:
        """Lets another sender lead at once. Idempotent."""
        self._leadership.resign()

    def run(self, stopping: threading.Event, url: str, pulse: Pulse) -> None:
        """Ticks until told to stop; waits for the server when it is away, and tells of that by itself."""
        self._attempts.stopping, self._beat = stopping, pulse.beat
        down, server = False, ServerDown(self._keys.queue, self._sinks)
        while not stopping.is_set():
            made = 0
            try:
                with driver_errors(url):
                    made = self.tick()
                server.well()
                down = False
            except ServerError as error:
                if not down:
                    _LOG.warning("sender_waits_for_server", error=str(error))
                server.failed(str(error))
                down = True
            pulse.wait(stopping, 0 if made else _TICK_S)  # what was made may have made more due
        pulse.close()
        try:
            with driver_errors(url):
                self.resign()
        except ServerError:
            pass  # the lease runs out by itself


def send_trial(config: AlertsConfig, sink: Sink, queue: str) -> dict[str, SinkAnswer]:
    """Sends a trigger and its resolve; the second only when the first was accepted."""
    quiet()
    now_ms = time.time_ns() // 1_000_000
    alert = Alert(
        id=uuid.uuid4().hex,
        rule="test",
        severity=sink.severities[0],
        summary="a test of this sink by `amn alerts test`; nothing is wrong",
        latest="nothing was wrong",
        runbook="test",
        phase="firing",
        since_ms=now_ms,
        fired_ms=now_ms,
        told_ms=now_ms,
    )
    answers: dict[str, SinkAnswer] = {}
    steps: dict[Kind, Alert] = {"trigger": alert, "resolve": replace(alert, phase="ok", resolved_ms=now_ms)}
    for kind, state in steps.items():
        if not answers or answers["trigger"].outcome == "accepted":
            time.sleep(sink.pace_ms / 1000 if answers else 0)
            message = Message(kind=kind, alert=state, now_ms=now_ms, queue=queue, settings=config.settings)
            answers[kind] = sink.send(message)
    return answers
