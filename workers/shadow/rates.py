"""The sampling rate of each lane: enough for a judgement, between 1 and 5 %, calm.

A rate is 1/k with a whole k, so that a sample's weight is exact. The traffic of a lane is what the
samples of a minute stand for (the sum of their weights): nothing is counted on the hot path. Once a
minute one of the shadow workers, whichever comes first, smooths it and sets each lane's k towards
`samples_per_s`; AMN workers look every half minute (shadow_sampler.py). A worker that looked late
samples at the old rate, and says so with each sample: nothing depends on everybody changing at the
same time.

When the shadow stream lags, every lane is sampled at the lowest rate until it has caught up: what is
left out is a uniform part, never the newest or the slowest.

The hash `rates` is described in docs/drift-data.md; lua/rates.lua writes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import redis
import structlog

from producer.keys import Keys
from producer.sampling import ONE_IN_MAX, ONE_IN_MIN
from workers.engine.queue import load
from workers.shadow.scores import TARGET_TRUE, Labels
from workers.shadow.settings import ShadowSettings

_LOG = structlog.get_logger("amn.worker")
_LANE = "lane:"
#: A new rate is published this many minutes before it holds: every worker has looked by then.
_AHEAD_MIN = 2
#: Further back than this, minutes that were missed are not made up for.
_CATCH_UP_MIN = 10
#: Below this many requests a minute, a lane at the highest rate need not be remembered.
_FORGOTTEN = 0.01
_TTL_S = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneRate:
    """One lane: k from the epoch minute `since` on, `before` until then; traffic in requests a minute."""

    k: int
    since: int
    before: int
    traffic: float

    def at(self, minute: int) -> int:
        """k in force."""
        return self.k if minute >= self.since else self.before

    def __str__(self) -> str:
        return f"{self.k} {self.since} {self.before} {self.traffic:.6g}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of `str`.

        Raises:
            ValueError: Written by another version.
        """
        k, since, before, traffic = text.split()
        return cls(k=int(k), since=int(since), before=int(before), traffic=float(traffic))


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
        fields = {name.decode(): text.decode() for name, text in stored.items()}
        lanes = {
            name.removeprefix(_LANE): LaneRate.parse(text)
            for name, text in fields.items()
            if name.startswith(_LANE)
        }
        return cls(minute=int(fields.get("minute", "0")), shed=fields.get("shed") == "1", lanes=lanes)

    def as_of(self, minute: int) -> Rates:
        """These rates; when they are of before the server's clock went back, all of them hold now."""
        if self.minute < minute:
            return self
        lanes = {name: replace(rate, since=min(rate.since, minute)) for name, rate in self.lanes.items()}
        return replace(self, minute=minute - 2, lanes=lanes)

    def fields(self) -> dict[str, str]:
        """For the hash."""
        lanes = {_LANE + name: str(rate) for name, rate in self.lanes.items()}
        return {"minute": str(self.minute), "shed": str(int(self.shed)), **lanes}


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
        old = stored.as_of(last + 1)
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
                new = step(new, minute, self._traffic(minute), last + 1, self._shadow)
        if new.shed != old.shed:
            _LOG.warning("sampling_sheds" if new.shed else "sampling_recovers", lag_ms=lag_ms)
        flat = [word for pair in new.fields().items() for word in pair]
        expected = str(stored.minute) if stored.minute else ""
        return bool(self._publish([rates_key(self._keys)], [expected, _TTL_S, *flat]))

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


def step(old: Rates, minute: int, traffic: Mapping[str, int], now_min: int, shadow: ShadowSettings) -> Rates:
    """The rates after one more minute.

    Args:
        traffic: Requests of that minute, by lane.
        now_min: The present minute; a change holds from two minutes later on.
    """
    share = 1 - 0.5 ** (1 / shadow.half_life_min)
    lanes = {}
    for lane in {*old.lanes, *traffic}:
        seen, known = float(traffic.get(lane, 0)), old.lanes.get(lane)
        if known is None:
            known = LaneRate(k=ONE_IN_MIN, since=0, before=ONE_IN_MIN, traffic=seen)
        smooth = known.traffic + share * (seen - known.traffic)
        if smooth < _FORGOTTEN and known.k == ONE_IN_MIN:
            continue
        lanes[lane] = _changed(replace(known, traffic=smooth), now_min, shadow)
    return Rates(minute=minute, shed=old.shed, lanes=lanes)


def _changed(rate: LaneRate, now_min: int, shadow: ShadowSettings) -> LaneRate:
    wanted = round(rate.traffic / 60 / shadow.samples_per_s)
    wanted = min(max(wanted, ONE_IN_MIN), ONE_IN_MAX)
    pending = rate.since > now_min
    if pending or abs(wanted - rate.k) < shadow.hysteresis * rate.k:
        return rate
    return replace(rate, k=wanted, since=now_min + _AHEAD_MIN, before=rate.k)


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
