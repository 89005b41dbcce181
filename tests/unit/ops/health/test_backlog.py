"""The backlog in seconds: pure arithmetic on what was read."""

from __future__ import annotations

from typing import Any

import pytest

from ops.health.backlog import backlogs, loads
from ops.health.streams import StreamFacts
from ops.health.workers import WorkerFacts

NAMES = ("requests:high", "requests", "requests:low", "fallback", "fallback:secondary", "shadow", "truths")
LEVELS = "requests:high requests requests:low"


def streams(**entries: tuple[int, int, int]) -> dict[str, StreamFacts]:
    """Streams that are empty but for these: entries, leased, age of the oldest in ms."""
    empty = StreamFacts(entries=0, leased=0, payload_bytes=0, oldest_age_ms=None)
    found = dict.fromkeys(NAMES, empty)
    for name, (count, leased, age_ms) in entries.items():
        found[name.replace("__", ":")] = StreamFacts(
            entries=count, leased=leased, payload_bytes=0, oldest_age_ms=age_ms
        )
    return found


def worker(kind: str = "amn", rate: float = 100.0, serves: str = LEVELS, **more: Any) -> WorkerFacts:
    return WorkerFacts(name=f"{kind}-1", kind=kind, ended_per_s=rate, streams=serves, **more)


def test_what_waits_over_the_rate_of_those_that_serve_it() -> None:
    found = backlogs(streams(requests=(640, 40, 900)), [worker(), worker(rate=200)])
    assert found["requests"].waiting == 600
    assert found["requests"].backlog_s == pytest.approx(2.0)


def test_a_lower_level_waits_for_those_above_it_too() -> None:
    found = backlogs(
        streams(requests__high=(100, 0, 1), requests=(200, 0, 1), requests__low=(300, 0, 1)), [worker()]
    )
    assert [found[name].backlog_s for name in LEVELS.split()] == [
        pytest.approx(1),
        pytest.approx(3),
        pytest.approx(6),
    ]
    assert loads(found)["amn"].backlog_s == pytest.approx(6)


def test_nothing_that_waits_is_no_backlog_whatever_the_rate() -> None:
    for alive in ([], [worker()], [worker(rate=0)]):
        assert {one.backlog_s for one in backlogs(streams(), alive).values()} == {0}


def test_a_poison_entry_that_is_held_alone_is_no_reason_for_more_workers() -> None:
    found = backlogs(streams(requests=(1, 1, 60_000)), [worker(rate=0)])
    assert found["requests"].backlog_s == 0


def test_without_a_rate_the_backlog_is_the_age_of_what_waits() -> None:
    for alive in ([], [worker(rate=0)], [worker(stuck_ms=60_000)], [worker(seen_ms_ago=8_000)]):
        assert backlogs(streams(requests=(5, 0, 7_500)), alive)["requests"].backlog_s == pytest.approx(7.5)
    # Also when a worker that died has leased all of it: nobody else would ever be started.
    assert backlogs(streams(requests=(5, 5, 7_500)), [])["requests"].backlog_s == pytest.approx(7.5)


def test_each_place_of_the_chain_has_workers_of_its_own() -> None:
    alive = [worker("fallback", 10, "fallback"), worker("fallback", 2, "fallback:secondary")]
    found = backlogs(streams(fallback=(20, 0, 1), fallback__secondary=(20, 0, 1)), alive)
    assert (found["fallback"].backlog_s, found["fallback:secondary"].backlog_s) == (
        pytest.approx(2),
        pytest.approx(10),
    )
    assert loads(found)["fallback"].backlog_s == pytest.approx(10)


def test_a_worker_of_an_earlier_version_counts_by_its_kind() -> None:
    assert backlogs(streams(), [worker(serves="")])["requests"].workers == 1


def test_busy_workers_are_seen_before_anything_waits() -> None:
    found = loads(backlogs(streams(), [worker(busy_ratio=0.9), worker(busy_ratio=0.7)]))
    assert found["amn"].busy_ratio == pytest.approx(0.8)
    assert found["amn"].workers == 2
    assert found["fallback"].workers == 0
