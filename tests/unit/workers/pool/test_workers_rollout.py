"""One replacement at a time, and nobody leaves before another is ready."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import structlog

from workers.pool import rollout
from workers.pool.rollout import Rollout, Slot
from workers.pool.served import Served

OLD = Served((("production_model", "/a", 1),))
NEW = Served((("production_model", "/b", 1),))


class Child:
    """What a rollout asks of a worker process."""

    def __init__(self, kind: str, pid: int) -> None:
        self.name, self.pid = kind, pid
        self.ready = threading.Event()
        self.is_ready = self.ready.is_set
        self.alive, self.code, self.age_s = True, None, 0.0

    def end(self, code: int) -> None:
        self.alive, self.code = False, code


class Pool:
    """Slots, and a record of who was spawned and dismissed; time is told, not waited for."""

    def __init__(self, *kinds: str) -> None:
        self.spawned: list[Child] = []
        self.dismissed: list[Child] = []
        self.slots: list[Any] = [Slot(kind, Child(kind, i), OLD) for i, kind in enumerate(kinds)]  # type: ignore[arg-type]
        self.rollout = Rollout(self.slots, self.spawn, self.dismissed.append)  # type: ignore[arg-type]

    def spawn(self, kind: str, _: Served) -> Any:
        self.spawned.append(Child(kind, 100 + len(self.spawned)))
        return self.spawned[-1]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(rollout.time, "monotonic", lambda: now[0])
    return now


def test_workers_are_replaced_in_turn_each_when_its_successor_is_ready() -> None:
    pool = Pool("amn", "amn", "fallback")
    for number in range(2):
        pool.rollout.turn(NEW)
        assert len(pool.spawned) == number + 1
        pool.rollout.turn(NEW)
        assert len(pool.dismissed) == number  # it is not ready: nobody leaves
        pool.spawned[-1].ready.set()
        pool.rollout.turn(NEW)
        assert len(pool.dismissed) == number + 1
    pool.rollout.turn(NEW)
    assert len(pool.spawned) == 2  # the fallback does not read that link
    assert pool.rollout.settled(NEW)
    assert [slot.child for slot in pool.slots[:2]] == pool.spawned
    assert pool.rollout.swaps == 2


def test_a_restart_concerns_everybody() -> None:
    pool = Pool("amn", "fallback", "shadow")
    again = Served(OLD.links, restart=1)
    for _ in range(3):
        pool.rollout.turn(again)
        pool.spawned[-1].ready.set()
        pool.rollout.turn(again)
    assert pool.rollout.settled(again)
    assert [child.name for child in pool.dismissed] == ["amn", "fallback", "shadow"]


def test_what_is_refused_is_said_and_tried_again_later_and_later(clock: list[float]) -> None:
    pool = Pool("amn")
    with structlog.testing.capture_logs() as logs:
        for tries, pause_s in enumerate((5.0, 10.0, 20.0)):
            pool.rollout.turn(NEW)
            assert len(pool.spawned) == tries + 1
            pool.spawned[-1].end(1)
            pool.rollout.turn(NEW)
            clock[0] += pause_s - 0.1
            pool.rollout.turn(NEW)
            assert len(pool.spawned) == tries + 1  # not yet
            clock[0] += 0.2
    assert [(line["event"], line["log_level"], line["serving"]) for line in logs] == [
        ("swap_refused", "error", 0)
    ] * 3
    assert pool.slots[0].child.pid == 0
    assert not pool.rollout.settled(NEW)
    assert pool.rollout.settled(OLD)  # the link was moved back


def test_a_successor_that_was_killed_says_nothing_about_the_model(clock: list[float]) -> None:
    pool = Pool("amn")
    pool.rollout.turn(NEW)
    pool.spawned[-1].end(-9)
    pool.rollout.turn(NEW)
    clock[0] += 1.1
    pool.rollout.turn(NEW)
    assert len(pool.spawned) == 2


def test_a_refusal_does_not_hold_up_another_promotion(clock: list[float]) -> None:
    pool = Pool("amn")
    pool.rollout.turn(NEW)
    pool.spawned[-1].end(1)
    pool.rollout.turn(NEW)
    newer = Served((("production_model", "/c", 1),))
    pool.rollout.turn(newer)
    pool.spawned[-1].ready.set()
    pool.rollout.turn(newer)
    assert pool.rollout.settled(newer)


def test_one_that_never_gets_ready_is_given_up() -> None:
    pool = Pool("amn")
    pool.rollout.turn(NEW)
    pool.spawned[-1].age_s = 1_000.0
    with structlog.testing.capture_logs() as logs:
        pool.rollout.turn(NEW)
    assert [line["event"] for line in logs] == ["swap_refused"]
    assert pool.dismissed == pool.spawned
