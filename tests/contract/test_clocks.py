"""Clocks that step or are off: the server's, a worker's, a producer's."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from echo import EchoWorker, echo
from numpy.typing import NDArray
from redis.exceptions import NoPermissionError
from rig import KEYS, Rig, answer, show_worker
from servers import Server
from waiting import wait_until

from ops.errors import Unhealthy
from ops.health import alive
from ops.leader import Leadership, leader_key
from producer import AsyncProducer, Producer
from producer.keys import GROUP
from producer.messages import Request
from producer.settings import ProducerSettings
from producer.transport.clock import ServerClock
from workers.engine.keeper import Keeper
from workers.engine.loop import Loop
from workers.engine.microbatch import MicroBatch
from workers.engine.queue import LeasedQueue, Outcome
from workers.gate.tiers import TierWatch, tier_key
from workers.shadow.canary import Canary
from workers.side import SideThread

HOUR_MS = 3_600_000


class Answering:
    """A handler that answers all."""

    def handle(self, batch: MicroBatch) -> list[Outcome]:
        return [answer(entry) for entry in batch.entries]


@contextmanager
def working(queue: LeasedQueue) -> Iterator[None]:
    """A worker with its keeper, in this process."""
    loop = Loop(queue, Answering())
    keeper, thread = Keeper(loop, {}), threading.Thread(target=loop.run)
    keeper.start()
    thread.start()
    try:
        yield
    finally:
        loop.stop()
        thread.join()
        keeper.stop()


@pytest.fixture
def stepping(
    make_server: Callable[..., Server], contexts: Callable[..., NDArray[np.float32]]
) -> Iterator[Any]:
    """A server whose wall clock the test steps, and queues on it."""
    server = make_server("valkey", steps=True)
    server.admin = server.client()  # type: ignore[attr-defined]
    rig = Rig(server, contexts(8))
    yield server, rig
    rig.close()


def test_a_worker_notes_the_servers_time_before_it_takes_anything(
    real_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is stopped as it begins leaves entries that a step of the clock must not hide."""
    noted: list[int] = []
    start = SideThread.start

    def noting(side: SideThread) -> None:
        noted.append(real_rig.admin.exists(KEYS.clock))
        start(side)

    monkeypatch.setattr(SideThread, "start", noting)
    with working(real_rig.queue("w")):
        assert noted == [1]


def answers(rig: Rig) -> list[str]:
    return sorted(reply.id for reply in rig.replies())


@pytest.mark.needs("faketime")
@pytest.mark.parametrize("step_s", [-3600, -20, 700])
def test_what_a_dead_worker_held_is_answered_soon_whatever_the_servers_clock_does(
    stepping: tuple[Server, Rig], step_s: float
) -> None:
    server, rig = stepping
    dead, well = (rig.queue(name, lease_ms=600) for name in ("dead", "well"))
    with working(well):
        rig.put("before")
        wait_until(lambda: answers(rig) == ["before"])
        time.sleep(0.3)  # its keeper has seen the server's time
    rig.put("a", "b")
    assert len(dead.lease()) == 2
    server.step_clock(step_s)
    with working(well):
        rig.put("after")
        wait_until(lambda: rig.stats()["answered"] == 4, 15)  # less than any step
    assert set(answers(rig)) >= {"a", "after", "b"}  # a step ahead makes the first one's stream expire


@pytest.mark.needs("faketime")
def test_a_worker_that_lives_keeps_what_it_holds_when_the_servers_clock_goes_back(
    stepping: tuple[Server, Rig],
) -> None:
    server, rig = stepping
    keepers = rig.queue("holds", lease_ms=600), rig.queue("other", lease_ms=600)
    loops = [Loop(queue, Answering()) for queue in keepers]
    sides = [Keeper(loop, {}) for loop in loops]
    rig.put("a")
    (entry,) = keepers[0].lease()
    loops[0]._hand = (entry,)
    for side in sides:
        side.start()
    time.sleep(0.5)
    server.step_clock(-3600)
    give_up_at_s = time.monotonic() + 2.5
    while time.monotonic() < give_up_at_s:
        assert keepers[1].lease() == []
    assert keepers[0].finish([answer(entry)]) == [b"ok"]
    for side in sides:
        side.stop()


def test_a_step_back_begins_every_lease_of_every_stream_anew(real_rig: Rig) -> None:
    streams = (KEYS.requests, KEYS.fallback, KEYS.shadow)
    for stream in streams:
        queue = real_rig.queue("w", stream)
        real_rig.admin.xadd(stream, {"request": b"x"})
        assert queue.lease()
        (row,) = real_rig.admin.xpending_range(stream, GROUP, "-", "+", 9)
        real_rig.admin.xclaim(stream, GROUP, "w", 0, [row["message_id"]], idle=50_000, justid=True)
    keeper = Keeper(Loop(queue, Answering()), {})
    keeper._measure()
    assert all(idle(real_rig, stream) >= 50_000 for stream in streams)
    real_rig.admin.incrby(KEYS.clock, HOUR_MS)  # an hour ago it was an hour later
    keeper._measure()
    assert all(idle(real_rig, stream) < 10_000 for stream in streams)
    (row,) = real_rig.admin.xpending_range(streams[0], GROUP, "-", "+", 9)
    assert row["times_delivered"] == 1


def idle(rig: Rig, stream: str) -> int:
    (row,) = rig.admin.xpending_range(stream, GROUP, "-", "+", 9)
    return int(row["time_since_delivered"])


@pytest.mark.parametrize("off_s", [60, -60, 86_400])
def test_deadlines_go_by_the_servers_clock_whatever_a_workers_says(rig: Rig, off_s: float) -> None:
    queue = rig.queue("w")
    queue.clock = ServerClock(wall_s=lambda: time.time() + off_s)
    queue.ensure_group()
    now_ms = time.time() * 1000
    rig.put("in-time", expires_at_ms=now_ms + 30_000)
    rig.put("late", expires_at_ms=now_ms - 30_000)
    loop = Loop(queue, Answering())
    while entries := queue.lease():
        loop.step(entries)
    assert rig.stats() == {"answered": 1, "answered:amn": 1, "failed": 1, "failed:deadline_exceeded": 1}
    assert queue.clock.offset_ms == pytest.approx(off_s * 1000, abs=500)


def test_a_workers_presence_shows_how_far_its_clock_is_off(real_rig: Rig) -> None:
    queue = real_rig.queue("w")
    queue.clock = ServerClock(wall_s=lambda: time.time() + 60)
    keeper = Keeper(Loop(queue, Answering()), {})
    keeper._renew()
    stored = real_rig.admin.hgetall(KEYS.worker("w"))
    assert int(stored[b"clock_offset_ms"]) == pytest.approx(60_000, abs=500)
    assert int(stored[b"seen_at_ms"]) == pytest.approx(time.time() * 1000, abs=2_000)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="the system has no clock that goes on")
def test_a_machine_that_slept_knows_the_servers_time_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    slept_s, count = [0.0], time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda which: count(which) + slept_s[0])
    clock = ServerClock()
    clock.measured(clock.asks(), (1_000_000, 0))
    slept_s[0] = 3600.0
    assert clock.now_ms() == pytest.approx(1_003_600_000, abs=1000)


def test_the_clock_keeps_what_it_knows_while_slow_answers_agree() -> None:
    now_s = [100.0]
    clock = ServerClock(monotonic_s=lambda: now_s[0], wall_s=lambda: 5.0)
    assert clock.now_ms() == 5_000  # nothing is known yet
    clock.measured(100.0, (7_000, 0))
    now_s[0] = 110.0
    clock.measured(106.0, (7_008, 700_000))  # the answer took 4 s: it may have been given at 108.7 s
    assert clock.now_ms() == pytest.approx(7_010_000)
    clock.measured(109.99, [b"3410", b"0"])  # an hour back
    assert clock.now_ms() == pytest.approx(3_410_005)
    assert clock.offset_ms == pytest.approx(5_000 - 3_410_005)
    clock.measured(109.99, NoPermissionError("this user has no permissions to run the 'time' command"))
    assert clock.now_ms() == pytest.approx(3_410_005)


def test_a_dead_workers_presence_from_before_a_step_back_is_no_life(real_server: Any) -> None:
    name = KEYS.worker("amn-w")
    fields = {"kind": "amn", "pid": 1, "lease_ms": 3000, "host": socket.gethostname()}
    now_ms = int(time.time() * 1000)
    show_worker(real_server.admin, "amn-w", fields | {"seen_at_ms": now_ms, "progress_at_ms": now_ms})
    real_server.admin.pexpire(name, 9_000)
    assert alive(real_server.admin, KEYS, "amn") == "amn-w"
    real_server.admin.pexpire(name, HOUR_MS)  # what is left of nine seconds, an hour earlier
    with pytest.raises(Unhealthy, match="was seen lately"):
        alive(real_server.admin, KEYS, "amn")


def test_a_dead_tier_from_before_a_step_back_gets_no_escalations(real_server: Any) -> None:
    watch = TierWatch(real_server.admin, KEYS, "accuracy")
    real_server.admin.hset(tier_key(KEYS, "accuracy"), mapping={"ok": 1, "failed": 0})
    real_server.admin.pexpire(tier_key(KEYS, "accuracy"), 3_000)
    assert watch.update(0.0).alive
    real_server.admin.pexpire(tier_key(KEYS, "accuracy"), HOUR_MS)
    assert not watch.update(1.0).alive


def test_a_dead_judges_lead_from_before_a_step_back_runs_out_within_its_length(server: Any) -> None:
    dead, next_one = (Leadership(server.admin, KEYS, 45_000) for _ in range(2))
    assert dead.lead()
    server.admin.pexpire(leader_key(KEYS), HOUR_MS)
    assert next_one.lead() == 0  # the one that led may live
    assert 0 < server.admin.pttl(leader_key(KEYS)) <= 45_000
    assert dead.lead() == dead.fence > 0


def test_the_canary_is_claimed_again_after_its_hour_when_the_servers_clock_went_back(server: Any) -> None:
    canary, turn = Canary(server.admin, ProducerSettings(), None), KEYS.drift_prefix + "canary:turn"  # type: ignore[arg-type]
    assert canary.claim(HOUR_MS)
    server.admin.pexpire(turn, 24 * HOUR_MS)
    assert not canary.claim(HOUR_MS)
    assert 0 < server.admin.pttl(turn) <= HOUR_MS


@pytest.mark.parametrize("off_s", [90, -90])
def test_a_producer_stamps_the_servers_time_whatever_its_own_clock_says(
    real_server: Any, contexts: Callable[..., NDArray[np.float32]], off_s: float
) -> None:
    stamps: list[Request] = []

    def note(request: Request) -> list[Any]:
        stamps.append(request)
        return echo(request)

    async def asked() -> None:
        async with AsyncProducer(real_server.url) as producer:
            off(producer)
            await producer.predict(contexts(1)[0], deadline_ms=30_000)

    def off(producer: Any) -> None:
        clock = ServerClock(wall_s=lambda: time.time() + off_s)
        producer.channels[0].clock = clock
        clock.measured(clock.asks(), real_server.admin.time())

    with EchoWorker(real_server.url, note), Producer(real_server.url) as producer:
        off(producer)
        producer.predict(contexts(1)[0], deadline_ms=30_000)
        asyncio.run(asked())
    for request in stamps:
        assert request.submitted_at_ms == pytest.approx(time.time() * 1000, abs=5_000)
        assert request.expires_at_ms == pytest.approx(request.submitted_at_ms + 30_000)


def test_the_first_request_of_a_producer_is_stamped_by_the_servers_clock(
    server: Any, contexts: Callable[..., NDArray[np.float32]]
) -> None:
    producer = Producer(server.url)
    producer.channels[0].clock = clock = ServerClock(wall_s=lambda: 1.0)
    with EchoWorker(server.url):
        assert producer.submit(contexts(1)[0], deadline_ms=9_000).result()
        assert clock.now_ms() == pytest.approx(time.time() * 1000, abs=5_000)
    producer.close()


@pytest.mark.slow
@pytest.mark.needs("faketime")
def test_a_producer_follows_the_servers_clock_within_seconds(
    stepping: tuple[Any, Rig], contexts: Callable[..., NDArray[np.float32]]
) -> None:
    server, _ = stepping
    with EchoWorker(server.url) as worker, Producer(server.url) as producer:
        clock, [row] = producer.channels[0].clock, contexts(1)
        for step_s in (-3600, 700):
            server.step_clock(step_s)
            # Also while somebody reads for itself all the time.
            wait_until(lambda: producer.predict(row) is not None and follows(clock, step_s))  # noqa: B023
            assert producer.predict(row, deadline_ms=20_000)
    assert worker.seen


def follows(clock: ServerClock, step_s: float) -> bool:
    return abs(clock.now_ms() / 1000 - time.time() - step_s) < 5


@pytest.mark.slow
@pytest.mark.needs("faketime")
def test_answers_reach_a_client_whose_stream_was_made_anew_after_the_servers_clock_went_back(
    stepping: tuple[Any, Rig], contexts: Callable[..., NDArray[np.float32]]
) -> None:
    server, rig = stepping
    with EchoWorker(server.url), Producer(server.url) as producer:
        assert producer.predict(contexts(1)[0])
        server.step_clock(-3600)
        wait_until(partial(follows, producer.channels[0].clock, -3600))
        rig.admin.flushall()
        handles = [producer.submit(context) for context in contexts(8)]
        assert all(handle.result(3_000) for handle in handles)
        assert producer.submit(contexts(1)[0]).result(3_000)
        wait_until(lambda: rig.admin.xlen(producer.channels[0].cursor.stream) == 0)  # and they are trimmed
    assert producer.stray_replies == 0
