"""The rates on a server: one step a minute whoever takes it, from what the samples stand for."""

from __future__ import annotations

from typing import Any

import pytest

from ops.clock import server_now_ms
from producer.keys import Keys
from producer.settings import ProducerSettings
from workers.settings import WorkerSettings
from workers.shadow.rates import Rates, Steering, rates_key, read_rates
from workers.shadow.sampler import Sampler, SamplerThread
from workers.shadow.scores import Labels
from workers.shadow.settings import ShadowSettings

KEYS = Keys()
SHADOW = ShadowSettings()


class Rig:
    """Minutes of sums on a server, and what steers by them."""

    def __init__(self, server: Any) -> None:
        self.server, self.admin = server, server.admin
        self.now_min = server_now_ms(self.admin) // 60_000

    def traffic(self, back: int, per_s: int, lane: str = "general", tier: str = "true") -> None:
        field = Labels("amn@1", lane, "id", tier).field("predictions.wsum")
        self.admin.hincrby(f"{KEYS.drift_minute_prefix}{self.now_min - back}", field, 60 * per_s)

    def waits(self, age_s: float) -> None:
        self.admin.delete(KEYS.shadow)
        at_ms = server_now_ms(self.admin) - int(age_s * 1000)
        self.admin.xadd(KEYS.shadow, {"kind": "truth"}, id=f"{at_ms}-1")

    def turn(self) -> bool:
        return Steering(self.admin, KEYS, SHADOW).turn()

    def rates(self) -> Rates:
        return read_rates(self.admin, rates_key(KEYS))


@pytest.fixture
def rig(server: Any) -> Rig:
    return Rig(server)


def test_a_lanes_rate_follows_what_its_samples_stand_for(rig: Rig) -> None:
    for back in range(1, 11):
        rig.traffic(back, 40, "narrative")
        rig.traffic(back, 2, "sci-fact")
        rig.traffic(back, 1000, "sci-fact", tier="model")
    assert rig.turn()
    found = rig.rates()
    assert found.lanes["narrative"].k == 80
    assert found.lanes["sci-fact"].k == 20
    assert rig.admin.ttl(rates_key(KEYS)) > 23 * 3600


def test_a_minute_is_taken_in_once(rig: Rig) -> None:
    rig.traffic(1, 40)
    stale = Steering(rig.admin, KEYS, SHADOW)
    read_before = rig.rates()
    assert rig.turn()
    stored = rig.admin.hgetall(rates_key(KEYS))
    publish = stale._publish
    assert (
        publish([rates_key(KEYS)], [str(read_before.minute) if read_before.minute else "", 9, "minute", "5"])
        == 0
    )
    assert rig.admin.hgetall(rates_key(KEYS)) == stored


def test_a_minute_that_still_waits_is_not_counted_yet(rig: Rig) -> None:
    """Its samples stand for less than there was: the rate would go up, and the lag with it."""
    rig.traffic(1, 40)
    rig.turn()
    rig.admin.hset(rates_key(KEYS), "minute", rig.now_min - 3)
    # From the end of the minute before, whenever in a minute the test runs.
    rig.waits(server_now_ms(rig.admin) % 60_000 / 1000 + 0.05)
    rig.turn()
    assert rig.rates().minute <= rig.now_min - 2


def test_a_lag_sheds_every_lane_and_recovers_when_it_is_over(rig: Rig) -> None:
    rig.traffic(1, 5)
    rig.waits(61)
    rig.turn()
    found = rig.rates()
    assert found.shed
    sampler = Sampler(0.05)
    sampler.rates = found
    assert {sampler.one_in(lane) for lane in ("general", "narrative")} == {100}
    for age_s, shed in ((40, True), (1, False)):
        rig.admin.hset(rates_key(KEYS), "minute", rig.now_min - 2)
        rig.waits(age_s)
        rig.turn()
        assert rig.rates().shed is shed
    # The minutes of the lag were passed over: traffic is what it was taken for before.
    assert rig.rates().lanes == {} or rig.rates().lanes["general"].k == 20


def test_an_amn_worker_looks_the_rates_up(rig: Rig) -> None:
    for back in range(1, 11):
        rig.traffic(back, 1000)
    rig.turn()
    sampler = Sampler(0.05)
    settings = WorkerSettings(kind="amn", producer=ProducerSettings(url=rig.server.url))
    thread = SamplerThread(settings, sampler)
    thread.turn()
    assert sampler.one_in("general") == 100
    thread.client.close()


def test_rates_of_another_version_leave_the_highest_rate(rig: Rig) -> None:
    rig.admin.hset(rates_key(KEYS), mapping={"minute": "7", "lane:general": "half"})
    assert rig.rates() == Rates()


def test_rates_go_on_and_shedding_ends_when_the_servers_clock_went_back(rig: Rig) -> None:
    then = rig.now_min + 60
    fields = {"minute": then, "shed": 1, "lane:general": f"20 {then + 2} 100 5"}
    rig.admin.hset(rates_key(KEYS), mapping=fields)
    rig.traffic(1, 40)
    assert rig.turn()
    assert not rig.rates().shed
    assert rig.now_min - 1 <= rig.rates().minute <= rig.now_min
    assert rig.rates().lanes["general"].k == 20
