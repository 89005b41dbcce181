"""Renews the lease while the loop works, and says that this worker makes progress."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

import structlog

from producer.errors import ServerError
from producer.keys import GROUP
from producer.transport.connection import driver_errors
from workers.engine.loop import Loop
from workers.engine.pace import Pace
from workers.engine.reads import load
from workers.engine.stages import MINUTE_TTL_MS
from workers.engine.watchdog import Watchdog
from workers.side import SideThread

_LOG = structlog.get_logger("amn.worker")
#: Lifetime of the notes on where the streams stand, and how often one worker refreshes them.
_STANDING_MS, _STANDING_PERIOD_MS = 10_000, 900


class Keeper(SideThread):
    """Keeps what a worker has, and shows it.

    Every third of the lease it asks for the server's time, renews what the loop has in hand, refreshes the
    worker's presence hash, which expires after three leases, and says where the streams stand; twice as
    often it makes sure that the server knows the scripts of the producers. A worker whose process lives but
    whose loop is stuck shows a `progress_at_ms` that does not move, until the watchdog ends it.

    Args:
        loop: The worker's.
        serves: What it answers with and by what it decides: ids by name, such as `model` and `bank`.
        beat: Called each turn; says that this thread gets on.
    """

    name = "keeper"
    at_once = True

    def __init__(
        self, loop: Loop, serves: Mapping[str, str], beat: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(loop.queue.settings)
        self._loop, self._serves, self._beat = loop, dict(serves), beat
        lease_s = self.settings.queue.lease_ms / 1000
        self.period_s = min(lease_s / 6, 0.5)  # the pool counts on two signs a second
        self._extend, self._clock, self._standing, self._add_stages = (
            load(name).on(self.client) for name in ("extend", "clock", "standing", "stages")
        )
        self._watchdog = Watchdog(loop, lease_s / 3)
        self._pace = Pace()
        self._key = self.keys.worker(loop.queue.name)
        self._lends = True
        self._finished = 0
        self._began_at_s = self._progress_at_s = time.monotonic()

    def start(self) -> None:
        """Notes the server's time before anything is leased, so that no step goes unnoticed; then starts
        the thread."""
        with suppress(ServerError), driver_errors(self.settings.producer.url):
            self._measure()
        super().start()

    def stop(self) -> None:
        """Stops renewing and removes the presence."""
        super().stop()
        self._watchdog.disarm()
        with suppress(ServerError), driver_errors(self.settings.producer.url):
            self.client.delete(self._key)  # else it expires by itself
            self._tell_stages()
        self.client.close()

    def take_turn(self, now_s: float) -> None:
        """Renews every other time; lends the scripts each time."""
        self._lends = not self._lends
        self._beat()
        self._pace.note(now_s, self._loop.finished, self._loop.busy)
        if not self._lends:
            self._watchdog.check(now_s)
            self._watchdog.arm()
            self._renew()
        # Producers try again for a second: what SCRIPT FLUSH took is back before that.
        for script in self._loop.queue.lent:
            self.client.script_load(script.text)

    def _renew(self) -> None:
        self._measure()
        queue, places = self._loop.queue, self.keys.places
        for stream, ids in queue.ids(self._loop.in_hand).items():
            for first in range(0, len(ids), 1000):
                self._extend([stream], [GROUP, queue.name, *ids[first : first + 1000]])
        with self.client.pipeline(transaction=False) as pipe:
            pipe.hset(self._key, mapping=cast(Any, self._presence()))
            pipe.pexpire(self._key, 3 * self.settings.queue.lease_ms)
            pipe.execute()
        self._standing([*places, self.keys.standing], [_STANDING_MS, _STANDING_PERIOD_MS])
        self._tell_stages()

    def _tell_stages(self) -> None:
        """Adds the times of the stages since the last time to those of the queue, and of this minute."""
        loop = self._loop
        if loop.stages is None or not (grown := loop.stages.growth()):
            return
        minute = int(loop.queue.clock.now_ms() // 60_000)
        words: list[Any] = [MINUTE_TTL_MS]
        for labels, bucket, number in grown:
            words += (":".join((*labels, bucket)), ":".join((*labels[:3], bucket)), number)
        self._add_stages([self.keys.stages, self.keys.stages_minute(minute)], words)

    def _measure(self) -> None:
        """Compares the clocks, and lets the server's going back be noticed."""
        queue, keys = self._loop.queue, self.keys
        streams = [keys.clock, *keys.places, keys.shadow, keys.truths]
        asked_at_s = queue.clock.asks()
        *clock, renewed = self._clock(streams, [GROUP, self.settings.queue.lease_ms])
        queue.clock.measured(asked_at_s, clock)
        if renewed:
            _LOG.warning("server_clock_went_back", worker=queue.name, leases_begun_anew=renewed)

    def _presence(self) -> dict[str, object]:
        """The presence hash: kind, host, age, and when the loop last ended an entry or had nothing in hand.

        Times are the server's; spans are measured here, so that no step of a clock lengthens them.
        """
        clock, now_s, finished = self._loop.queue.clock, time.monotonic(), self._loop.finished
        if finished != self._finished or not self._loop.in_hand:
            self._finished, self._progress_at_s = finished, now_s
        now_ms = clock.now_ms()
        return {
            "kind": self.settings.kind,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "finished": finished,
            "ended_per_s": round(self._pace.ended_per_s, 3),
            "busy_ratio": round(self._pace.busy_ratio, 3),
            "streams": " ".join(stream.partition("}:")[2] for stream in self._loop.queue.streams),
            "started_at_ms": int(now_ms - (now_s - self._began_at_s) * 1000),
            "seen_at_ms": int(now_ms),
            "progress_at_ms": int(now_ms - (now_s - self._progress_at_s) * 1000),
            "clock_offset_ms": round(clock.offset_ms),
            "lease_ms": self.settings.queue.lease_ms,
            "given_up": self._loop.given_up,
            "reads_lost": self._loop.queue.sizes.lost,
            "reads_narrowed": self._loop.queue.sizes.narrowed,
            **self._serves,
        }
