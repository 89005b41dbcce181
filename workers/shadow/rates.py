"""The sampling rate of each lane: enough for a judgement, between 1 and 5 %, calm.

A rate is 1/k with a whole k, so that a sample's weight is exact. The traffic of a lane is what the
samples of a minute stand for (the sum of their weights): nothing is counted on the hot path. Once a
minute one of the shadow workers, whichever comes first, smooths it and sets each lane's k towards
`samples_per_s`; AMN workers look every half minute. Each sample says at which rate it was taken, so that
nothing depends on everybody changing at the same time.

When the shadow stream lags, every lane is sampled at the lowest rate until it has caught up: what is
left out is a uniform part, never the newest or the slowest.

The hash `rates` is described in docs/drift-data.md; lua/rates.lua writes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self, cast

import redis
import structlog

from producer.keys import Keys
from producer.sampling import ONE_IN_MAX, ONE_IN_MIN
from workers.engine.reads import load
from workers.shadow.scores import TARGET_TRUE, Labels
from workers.shadow.settings import ShadowSettings

_LOG = structlog.get_logger("amn.worker")
_LANE = b"lane:"
#: Further back than this, minutes that were missed are not made up for.
_CATCH_UP_MIN = 10
#: Below this many requests a minute, a lane at the highest rate need not be remembered.
_FORGOTTEN = 0.01
_TTL_S = 24 * 3600


class LaneRate(NamedTuple):
    """One lane: it is sampled at 1/k, and has so much traffic, in requests a minute."""

    k: int
    traffic: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The rates in force.

    Attributes:
        minute: Last epoch minute that was taken in; 0 for none.
        shed: Whether every lane is sampled at the lowest rate.
        lanes: By name; a lane that is not here has the highest rate.
    """

    minute: int = 0
    shed: bool = False
    lanes: Mapping[str, LaneRate] = field(default_factory=dict)

    @classmethod
    def parse(cls, stored: Mapping[bytes, bytes]) -> Self:
        """From the hash.

        Raises:
            ValueError: Written by another version.
        """
        lanes = {}
        for name, text in stored.items():
            if name.startswith(_LANE):
                k, _, _, traffic = text.split()
                lanes[name.removeprefix(_LANE).decode()] = LaneRate(int(k), float(traffic))
        return cls(minute=int(stored.get(b"minute", b"0")), shed=stored.get(b"shed") == b"1", lanes=lanes)

    def words(self) -> list[str]:
        """Fields and values of the hash in turn."""
        # A lane's second and third number are those of versions that announced a change before it held.
        lanes = [(f"lane:{name}", f"{k} 0 {k} {traffic:.6g}") for name, (k, traffic) in self.lanes.items()]
        return [
            word
            for pair in [("minute", str(self.minute)), ("shed", str(int(self.shed))), *lanes]
            for word in pair
        ]


class Steering:
    """Sets the rates, once a minute; of several shadow workers the first one does it."""

    def __init__(self, client: redis.Redis, keys: Keys, shadow: ShadowSettings) -> None:
        self._client, self._keys, self._shadow = client, keys, shadow
        self._publish = load("rates").on(client)

    def turn(self) -> bool:
        """Takes in the minutes that are complete; returns whether the rates were written."""
        seconds, microseconds = self._client.time()
        now_ms = seconds * 1000 + microseconds // 1000
        stored = read_rates(self._client, rates_key(self._keys))
        last = now_ms // 60_000 - 1
        # What is of before the server's clock went back holds now.
        old = stored if stored.minute <= last else replace(stored, minute=last - 1)
        if last <= old.minute:
            return False
        oldest_ms = self._oldest_ms(now_ms)
        lag_ms, limit_ms = now_ms - oldest_ms, self._shadow.lag_ms_max
        if lag_ms > (limit_ms / 2 if old.shed else limit_ms):
            # Minutes that are not whole say nothing about the traffic: they are passed over.
            new = replace(old, minute=last, shed=True)
        else:
            complete = min(last, oldest_ms // 60_000 - 1)
            if complete <= old.minute:
                return False
            new = replace(old, shed=False)
            for minute in range(max(old.minute + 1, complete - _CATCH_UP_MIN + 1), complete + 1):
                new = step(new, minute, self._traffic(minute), self._shadow)
        if new.shed != old.shed:
            _LOG.warning("sampling_sheds" if new.shed else "sampling_recovers", lag_ms=lag_ms)
        expected = str(stored.minute) if stored.minute else ""
        return bool(self._publish([rates_key(self._keys)], [expected, _TTL_S, *new.words()]))

    def _oldest_ms(self, now_ms: int) -> int:
        """The time of the oldest shadow entry; now, when there is none."""
        oldest = cast("list[tuple[bytes, Any]]", self._client.xrange(self._keys.shadow, count=1))
        return min(int(oldest[0][0].partition(b"-")[0]), now_ms) if oldest else now_ms

    def _traffic(self, minute: int) -> dict[str, int]:
        """Requests of a minute by lane, as its samples tell."""
        stored = cast("dict[bytes, bytes]", self._client.hgetall(f"{self._keys.drift_minute_prefix}{minute}"))
        found: defaultdict[str, int] = defaultdict(int)
        for name, amount in stored.items():
            if name.endswith(b"|predictions.wsum"):
                labels, _ = Labels.parse(name.decode())
                if labels.target == TARGET_TRUE:
                    found[labels.lane] += int(amount)
        return dict(found)


def step(old: Rates, minute: int, traffic: Mapping[str, int], shadow: ShadowSettings) -> Rates:
    """The rates after one more minute, of which `traffic` are the requests by lane."""
    share = 1 - 0.5 ** (1 / shadow.half_life_min)
    lanes = {}
    for lane in {*old.lanes, *traffic}:
        seen = float(traffic.get(lane, 0))
        k, known = old.lanes.get(lane, LaneRate(ONE_IN_MIN, seen))
        smooth = known + share * (seen - known)
        if smooth < _FORGOTTEN and k == ONE_IN_MIN:
            continue
        wanted = min(max(round(smooth / 60 / shadow.samples_per_s), ONE_IN_MIN), ONE_IN_MAX)
        lanes[lane] = LaneRate(wanted if abs(wanted - k) >= shadow.hysteresis * k else k, smooth)
    return Rates(minute=minute, shed=old.shed, lanes=lanes)


def rates_key(keys: Keys) -> str:
    """The hash of the rates in force."""
    return keys.drift_prefix + "rates"


def read_rates(client: redis.Redis, key: str) -> Rates:
    """Reads the rates; the highest one for all when they are of a version that is not known here."""
    stored = cast("dict[bytes, bytes]", client.hgetall(key))
    try:
        return Rates.parse(stored)
    except ValueError as error:
        _LOG.warning("rates_unreadable", error=str(error))
        return Rates()
