"""Side threads: they go on whatever a turn meets, and say so once."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from producer.errors import ServerUnavailable
from workers.side import SideThread


def wait_for(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up_at, "it did not happen in time"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("error", "event"),
    [(ServerUnavailable("gone"), "gate_waits_for_server"), (ValueError("odd"), "gate_failed")],
)
def test_a_side_thread_outlives_what_its_turn_raises_and_says_it_once(error: Exception, event: str) -> None:
    turns: list[int] = []

    def turn() -> None:
        turns.append(1)
        if len(turns) < 5:
            raise error

    side = SideThread("gate", turn, lambda: 0.001)
    with capture_logs() as logs:
        side.start()
        wait_for(lambda: len(turns) > 6)
        side.stop()
    assert [line["event"] for line in logs] == [event]


@pytest.mark.parametrize(("at_once", "at_end"), [(True, False), (False, True), (False, False)])
def test_turns_come_at_once_and_at_the_end_where_they_are_asked_for(at_once: bool, at_end: bool) -> None:
    turns: list[bool] = []
    side = SideThread("x", lambda: turns.append(side.stopping), lambda: 60.0, at_once=at_once, at_end=at_end)
    side.start()
    wait_for(lambda: bool(turns) or not at_once)
    side.stop()
    assert turns == [False] * at_once + [True] * at_end
