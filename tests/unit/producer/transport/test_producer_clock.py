"""The server's clock, from answers that took their time on the way."""

from __future__ import annotations

import random

import pytest

from producer.transport.clock import ServerClock

AHEAD_MS = 1_000_000.0


class World:
    """A monotonic clock, and a server whose clock is ahead of it."""

    def __init__(self) -> None:
        self.now_s, self.ahead_ms = 100.0, AHEAD_MS
        self.clock = ServerClock(monotonic_s=lambda: self.now_s, wall_s=lambda: self.now_s)

    def ask(self, there_ms: float, back_ms: float) -> None:
        asked_at_s = self.clock.asks()
        self.now_s += there_ms / 1000
        micros = round((self.now_s * 1000 + self.ahead_ms) * 1000)
        self.now_s += back_ms / 1000
        self.clock.measured(asked_at_s, (micros // 1_000_000, micros % 1_000_000))

    @property
    def error_ms(self) -> float:
        return self.clock.now_ms() - (self.now_s * 1000 + self.ahead_ms)


def test_uneven_answers_together_tell_more_than_any_of_them_alone() -> None:
    world, rng = World(), random.Random(5)
    for _ in range(30):
        world.ask(0.05 + rng.expovariate(2), 0.05 + rng.expovariate(2))
        world.now_s += 1.0
    assert abs(world.error_ms) < 0.1


@pytest.mark.parametrize("step_ms", [3_600_000.0, -3_600_000.0, 5.0])
def test_a_clock_that_was_set_counts_from_the_next_answer_on(step_ms: float) -> None:
    world = World()
    for _ in range(5):
        world.ask(0.1, 0.1)
    world.ahead_ms += step_ms
    world.ask(0.2, 0.2)
    assert abs(world.error_ms) <= 0.2


def test_a_clock_that_runs_slowly_away_is_followed() -> None:
    world = World()
    for _ in range(600):
        world.ask(0.1, 0.1)
        world.now_s += 1.0
        world.ahead_ms += 0.05  # 50 millionths
    assert abs(world.error_ms) <= 0.2


def test_it_asks_a_few_times_in_a_row_and_then_seldom() -> None:
    world = World()
    asked = 0
    while world.clock.due:
        world.ask(0.1, 0.1)
        asked += 1
        assert asked < 10
    assert asked > 1
    world.now_s += 6
    assert world.clock.due
    world.clock.asks()
    assert not world.clock.due


def test_a_server_that_refuses_is_not_asked_for_ever() -> None:
    world = World()
    for _ in range(9):
        if world.clock.due:
            world.clock.measured(world.clock.asks(), Exception("NOPERM"))
    assert not world.clock.due
    assert not world.clock.known
