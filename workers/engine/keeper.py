"""Renews the lease while a batch runs, and says that this worker makes progress."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

import structlog

from producer.errors import ServerError
from producer.keys import GROUP
from producer.transport.connection import connect, driver_errors, script_text
from workers.engine.loop import Loop
from workers.engine.watchdog import Watchdog
from workers.side import SideThread

_LOG = structlog.get_logger("amn.worker")
#: How long what workers say of the streams holds, and how often one of them says it.
_STANDING_MS, _STANDING_PERIOD_MS = 10_000, 900


class Keeper:
    """A side thread with a connection of its own.

    Every third of the lease it asks for the server's time, renews what the loop has in hand, refreshes the
    worker's presence hash, which expires after three leases, and says where the streams stand; twice as
    often it makes sure that the server knows the scripts of the producers. A worker whose process lives but
    whose loop is stuck shows a `progress_at_ms` that does not move, until the watchdog ends it.

    Args:
        loop: The worker's.
        serves: What it answers with: `model`, and `bank` when it has one.
    """

    def __init__(self, loop: Loop, serves: Mapping[str, str]) -> None:
        self._loop = loop
        self._serves = dict(serves)
        self._progress_at_s = time.monotonic()
        self._finished = 0
        self._settings = loop.queue.settings
        self._period_s = self._settings.queue.lease_ms / 3000
        self._client = connect(self._settings.producer, retries=0)
        self._extend = self._client.register_script(script_text("workers", "extend"))
        self._clock = self._client.register_script(script_text("workers", "clock"))
        self._watchdog = Watchdog(loop, self._period_s)
        self._standing = self._client.register_script(script_text("workers", "standing"))
        self._key = loop.queue.keys.worker(loop.queue.name)
        self._lends = True
        self._thread = SideThread("keeper", self._turn, lambda: self._period_s / 2, at_once=True)
        self._began_at_s = time.monotonic()
        self._host = socket.gethostname()

    def start(self) -> None:
        """Notes the server's time before anything is leased, so that no step goes unnoticed; then starts
        the thread."""
        with suppress(ServerError), driver_errors(self._settings.producer.url):
            self._measure()
        self._thread.start()

    def stop(self) -> None:
        """Stops renewing and removes the presence."""
        self._thread.stop()
        self._watchdog.disarm()
        try:
            with driver_errors(self._settings.producer.url):
                self._client.delete(self._key)
        except ServerError:
            pass  # it expires by itself
        self._client.close()

    def _turn(self) -> None:
        # Producers try again for a second: what SCRIPT FLUSH took is back before that.
        self._lends = not self._lends
        if self._lends:
            self._lend()
            return
        self._watchdog.look(time.monotonic())
        self._watchdog.arm()
        with driver_errors(self._settings.producer.url):
            self._renew()
            self._lend()

    def _renew(self) -> None:
        self._measure()
        queue = self._loop.queue
        for stream, ids in queue.ids(self._loop.in_hand).items():
            for first in range(0, len(ids), 1000):
                self._extend(keys=[stream], args=[GROUP, queue.name, *ids[first : first + 1000]])
        presence = self._presence()
        with self._client.pipeline(transaction=False) as pipe:
            pipe.hset(self._key, mapping=cast(Any, presence))
            pipe.pexpire(self._key, 3 * self._settings.queue.lease_ms)
            pipe.execute()
        self._standing(
            keys=[*queue.keys.places, queue.keys.standing], args=[_STANDING_MS, _STANDING_PERIOD_MS]
        )

    def _lend(self) -> None:
        with driver_errors(self._settings.producer.url):
            for script in self._loop.queue.lent:
                self._client.script_load(script.text)

    def _measure(self) -> None:
        """Compares the clocks, and lets the server's going back be noticed."""
        queue, clock = self._loop.queue, self._loop.queue.clock
        lease_ms = self._settings.queue.lease_ms
        keys = [queue.keys.clock, *queue.keys.places, queue.keys.shadow, queue.keys.truths]
        asked_at_s = clock.asks()
        *time, renewed = cast("list[int]", self._clock(keys=keys, args=[GROUP, lease_ms]))
        clock.measured(asked_at_s, time)
        if renewed:
            _LOG.warning("server_clock_went_back", worker=queue.name, leases_begun_anew=renewed)

    def _presence(self) -> dict[str, object]:
        """Who, what, since when, and when it last ended something or had nothing to end.

        Times are the server's; spans are measured here, so that no step of a clock lengthens them.
        """
        clock, now_s, finished = self._loop.queue.clock, time.monotonic(), self._loop.finished
        if finished != self._finished or not self._loop.in_hand:
            self._finished, self._progress_at_s = finished, now_s
        now_ms = clock.now_ms()
        return {
            "kind": self._settings.kind,
            "host": self._host,
            "pid": os.getpid(),
            "finished": finished,
            "started_at_ms": int(now_ms - (now_s - self._began_at_s) * 1000),
            "seen_at_ms": int(now_ms),
            "progress_at_ms": int(now_ms - (now_s - self._progress_at_s) * 1000),
            "clock_offset_ms": round(clock.offset_ms),
            "lease_ms": self._settings.queue.lease_ms,
            "given_up": self._loop.given_up,
            "reads_lost": self._loop.queue.room.lost,
            "reads_narrowed": self._loop.queue.room.narrowed,
            **self._serves,
        }
