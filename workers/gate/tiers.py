"""The fallback tiers as others see them: alive, and how they do.

amn:{main}:gate:tier:<t>  hash  ok, failed, blended, kept, gain_millionths of the tier's workers
                                together; it expires three seconds after the last one lived
"""

from __future__ import annotations

import time
from typing import cast

import redis
import structlog

from amn.policy import ACCURACY, SECONDARY
from producer.keys import Keys
from producer.transport.connection import connect, driver_errors
from producer.transport.link import Link
from workers.engine.queue import load
from workers.gate.breaker import CLOSED, OPEN, Breaker, TierFacts
from workers.settings import WorkerSettings
from workers.side import SideThread

_LOG = structlog.get_logger("amn.gate")
PERIOD_S = 1.0
_ALIVE_MS = 3_000


def tier_key(keys: Keys, tier: str) -> str:
    """What a tier did; it exists while a worker of the tier lives."""
    return f"{keys.gate_prefix}tier:{tier}"


class Tally:
    """What a tier did since its start, for the breaker and the statistics; written by one thread.

    Attributes:
        ok, failed: Answers, and requests that it could not answer.
        blended, kept: Of the answers, those mixed with AMN's, and those where AMN's stayed.
        gain: Sum of the predicted gains of all answers, in cosine.
    """

    __slots__ = ("blended", "failed", "gain", "kept", "ok")

    def __init__(self) -> None:
        self.ok = self.failed = self.blended = self.kept = 0
        self.gain = 0.0


class TierWatch:
    """Looks at a fallback tier, and keeps its breaker."""

    def __init__(self, client: redis.Redis, keys: Keys, tier: str) -> None:
        self._link, self._script = Link(client), load("tier")
        self._keys = [tier_key(keys, tier), keys.fallback if tier == ACCURACY else keys.secondary]
        self._tier = tier
        self._known = False
        self.breaker = Breaker()

    def look(self, now_s: float) -> TierFacts:
        """What is known now.

        Raises:
            RedisError: The server did not answer.
        """
        alive, ok, failed, waiting, lag_ms = self._link.run(self._script, self._keys, [_ALIVE_MS])
        facts = TierFacts(alive=bool(alive), ok=ok, failed=failed, waiting=waiting, lag_ms=lag_ms)
        before, state = self.breaker.shown, self.breaker.look(facts, now_s)
        self._known |= facts.alive
        if self._known and state != before and OPEN in (before, state):
            _LOG.warning("breaker", tier=self._tier, state=state, alive=facts.alive, lag_ms=facts.lag_ms)
        return facts


class TierThread:
    """The side thread of a fallback worker: says that the tier lives, and what it did."""

    def __init__(self, settings: WorkerSettings, tier: str, tally: Tally) -> None:
        self._settings = settings
        self._tally = tally
        self._keys = Keys(settings.producer.queue)
        self._key = tier_key(self._keys, tier)
        self._client = connect(settings.producer, retries=0)
        self._next = TierWatch(self._client, self._keys, SECONDARY) if tier == ACCURACY else None
        self._told = (0, 0, 0, 0, 0)
        self.next_is_up = False
        self._thread = SideThread("tier", self._turn, lambda: PERIOD_S, at_end=True)

    def start(self) -> None:
        """Starts the thread; the tier is known to live before this returns, if the server does."""
        self._thread.turn()
        self._thread.start()

    def stop(self) -> None:
        """Tells a last time and ends. The tier lives on while another worker says so."""
        self._thread.stop()
        self._client.close()

    def tell(self, now_s: float) -> None:
        """One report.

        Raises:
            ServerError: The server is away.
        """
        tally = self._tally
        counts = (tally.ok, tally.failed, tally.blended, tally.kept, round(tally.gain * 1e6))
        names = ("ok", "failed", "blended", "kept", "gain_millionths")
        with driver_errors(self._settings.producer.url), self._client.pipeline(transaction=True) as pipe:
            for name, now, then in zip(names, counts, self._told, strict=True):
                pipe.hincrby(self._key, name, now - then)
            pipe.pexpire(self._key, _ALIVE_MS)
            pipe.execute()
            self._told = counts
            if self._next is not None:
                self._next.look(now_s)
                self.next_is_up = self._next.breaker.shown == CLOSED

    def _turn(self) -> None:
        self.tell(time.monotonic())


def read_tier(client: redis.Redis, keys: Keys, tier: str) -> dict[str, int]:
    """What a tier did while it lived; empty when no worker of it lives."""
    found = cast("dict[bytes, bytes]", client.hgetall(tier_key(keys, tier)))
    return {name.decode(): int(value) for name, value in found.items()}
