"""Side threads: they go on whatever a turn meets, and say so once."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs
from waiting import wait_until

from producer.errors import ServerUnavailable
from workers.settings import WorkerSettings
from workers.side import SideThread


class Counting(SideThread):
    """Notes its turns, and raises in the first four where it has something to raise."""

    name = "gate"

    def __init__(self, period_s: float, error: Exception | None = None) -> None:
        super().__init__(WorkerSettings(kind="amn"))
        self.period_s, self.error = period_s, error
        self.turns: list[bool] = []

    def take_turn(self, now_s: float) -> None:
        self.turns.append(self.stopping.is_set())
        if self.error is not None and len(self.turns) < 5:
            raise self.error


@pytest.mark.parametrize(
    ("error", "event"),
    [(ServerUnavailable("gone"), "gate_waits_for_server"), (ValueError("odd"), "gate_failed")],
)
def test_a_side_thread_outlives_what_its_turn_raises_and_says_it_once(error: Exception, event: str) -> None:
    side = Counting(0.001, error)
    with capture_logs() as logs:
        side.start()
        wait_until(lambda: len(side.turns) > 6)
        side.stop()
    assert [line["event"] for line in logs] == [event]


@pytest.mark.parametrize(("at_once", "at_end"), [(True, False), (False, True), (False, False)])
def test_turns_come_at_once_and_at_the_end_where_they_are_asked_for(at_once: bool, at_end: bool) -> None:
    side = Counting(60.0)
    side.at_once, side.at_end = at_once, at_end
    side.start()
    wait_until(lambda: bool(side.turns) or not at_once)
    side.stop()
    assert side.turns == [False] * at_once + [True] * at_end
