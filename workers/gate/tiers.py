"""The fallback tiers as others see them: alive, and how they do.

amn:{main}:gate:tier:<t>  hash  ok, failed, blended, kept, gain_millionths of the tier's workers
                                together; it expires three seconds after the last one lived
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import cast

import redis
import structlog

from amn.policy import ACCURACY, SECONDARY
from producer.keys import Keys
from workers.engine.reads import load
from workers.gate.breaker import CLOSED, OPEN, Breaker, TierFacts
from workers.settings import WorkerSettings
from workers.side import SideThread

_LOG = structlog.get_logger("amn.gate")
_ALIVE_MS = 3_000


def tier_key(keys: Keys, tier: str) -> str:
    """The hash of a tier's counts; it exists while a worker of the tier lives."""
    return f"{keys.gate_prefix}tier:{tier}"


@dataclass(slots=True)
class Tally:
    """Counts of one worker of a tier since its start; written by one thread.

    Attributes:
        ok, failed: Answers, and requests that it could not answer.
        blended, kept: Of the answers, those mixed with AMN's, and those where AMN's stayed.
        gain_millionths: Sum of the predicted gains of all answers, in millionths of a cosine.
    """

    ok: int = 0
    failed: int = 0
    blended: int = 0
    kept: int = 0
    gain_millionths: int = 0


class TierWatch:
    """Follows a fallback tier, and keeps its breaker."""

    def __init__(self, client: redis.Redis, keys: Keys, tier: str) -> None:
        self._script = load("tier").on(client)
        self._keys = [tier_key(keys, tier), keys.fallback if tier == ACCURACY else keys.secondary]
        self._tier = tier
        self._known = False
        self.breaker = Breaker()

    def update(self, now_s: float) -> TierFacts:
        """Asks the server for the tier's state, and updates the breaker.

        Raises:
            RedisError: The server did not answer.
        """
        alive, ok, failed, waiting, lag_ms = self._script(self._keys, [_ALIVE_MS])
        facts = TierFacts(alive=bool(alive), ok=ok, failed=failed, waiting=waiting, lag_ms=lag_ms)
        before, state = self.breaker.shown, self.breaker.update(facts, now_s)
        self._known |= facts.alive
        if self._known and state != before and OPEN in (before, state):
            _LOG.warning("breaker", tier=self._tier, state=state, alive=facts.alive, lag_ms=facts.lag_ms)
        return facts


class TierThread(SideThread):
    """The side thread of a fallback worker: says that the tier lives, and what it did.

    Attributes:
        next_is_up: Whether the next tier of the chain answers.
    """

    name = "tier"
    at_end = True  # the tier lives on while another worker says so

    def __init__(self, settings: WorkerSettings, tier: str, tally: Tally) -> None:
        super().__init__(settings)
        self._tally = tally
        self._key = tier_key(self.keys, tier)
        self._next = TierWatch(self.client, self.keys, SECONDARY) if tier == ACCURACY else None
        self._told: Counter[str] = Counter()
        self.next_is_up = False

    def start(self) -> None:
        """Starts the thread; the tier is known to live before this returns, if the server does."""
        self.turn_safely()
        super().start()

    def take_turn(self, now_s: float) -> None:
        """Reports what was done since the last turn, and follows the next tier."""
        counts = Counter(asdict(self._tally))
        with self.client.pipeline(transaction=True) as pipe:
            for name, count in counts.items():
                pipe.hincrby(self._key, name, count - self._told[name])
            pipe.pexpire(self._key, _ALIVE_MS)
            pipe.execute()
        self._told = counts
        if self._next is not None:
            self._next.update(now_s)
            self.next_is_up = self._next.breaker.shown == CLOSED


def read_tier(client: redis.Redis, keys: Keys, tier: str) -> dict[str, int]:
    """Reads a tier's counts; empty when no worker of it lives."""
    found = cast("dict[bytes, bytes]", client.hgetall(tier_key(keys, tier)))
    return {name.decode(): int(value) for name, value in found.items()}
