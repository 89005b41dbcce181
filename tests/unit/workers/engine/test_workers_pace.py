"""The pace of a worker: its rate and its busy share, from samples."""

from __future__ import annotations

import pytest

from workers.engine.pace import Pace


def test_a_steady_worker_has_its_rate_and_its_busy_share() -> None:
    pace = Pace()
    for i in range(200):
        pace.note(i * 0.5, finished=i * 50, busy=i % 4 != 0)
    assert pace.ended_per_s == pytest.approx(100)
    assert pace.busy_ratio == pytest.approx(0.75, abs=0.02)


def test_time_before_the_first_ended_entry_makes_a_worker_no_slower() -> None:
    pace = Pace()
    for i in range(20):
        pace.note(i * 0.5, finished=7, busy=False)
    for i in range(1, 3):
        pace.note(9.5 + i * 0.5, finished=7 + i * 500, busy=True)
    assert pace.ended_per_s == pytest.approx(1000)


def test_a_worker_that_ends_nothing_for_ten_seconds_has_no_rate() -> None:
    pace = Pace()
    for i in range(20):
        pace.note(i * 0.5, finished=i * 50, busy=True)
    before = pace.ended_per_s
    pace.note(14.0, finished=950, busy=True)
    assert 0 < pace.ended_per_s < before
    pace.note(20.0, finished=950, busy=True)
    assert pace.ended_per_s == 0


def test_a_worker_that_has_just_begun_has_neither() -> None:
    pace = Pace()
    assert (pace.ended_per_s, pace.busy_ratio) == (0, 0)
    pace.note(1.0, finished=0, busy=False)
    assert (pace.ended_per_s, pace.busy_ratio) == (0, 0)
