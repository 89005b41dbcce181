"""The history of the service: rows of counters become series of rates, with nothing invented between them."""

from __future__ import annotations

import json
from typing import Any

import fakeredis
import pytest

from ops.drift.service import history
from ops.drift.service.live import Service
from ops.health.streams import StreamFacts
from ops.health.workers import WorkerFacts
from producer.keys import Keys
from producer.stages import SUM

KEYS = Keys("main")
MIN = 60_000


def row(at_ms: int, **values: float) -> dict[str, Any]:
    return {"at_ms": at_ms, **values}


def test_rates_are_of_the_time_between_two_rows_and_null_where_rows_are_missing() -> None:
    rows = [
        row(0, answered=100, escalated=10, decided=100),
        row(MIN, answered=700, escalated=130, decided=700),
        row(10 * MIN, answered=900, escalated=150, decided=900),
        row(11 * MIN, answered=60, escalated=0, decided=60),  # the server was emptied
    ]
    found = history.columns(rows)
    assert found["at_ms"] == [0, MIN, 10 * MIN, 11 * MIN]
    assert found["series"]["answered_per_s"] == [None, 10.0, None, 1.0]
    assert found["series"]["escalation_rate"] == [None, 0.2, None, 0.0]
    assert found["series"]["depth_amn"] == [None] * 4
    assert {len(values) for values in found["series"].values()} == {4}


def test_a_row_holds_the_service_at_its_moment_and_is_read_back() -> None:
    client = fakeredis.FakeRedis()
    service = Service(
        now_ms=5 * MIN,
        counters={"answered": 7, "accepted:high": 2, "accepted:low": 1},
        streams={"requests": StreamFacts(entries=3, leased=1, payload_bytes=None, oldest_age_ms=1_500)},
        workers=(WorkerFacts(name="a", kind="amn"), WorkerFacts(name="b", kind="amn", stuck_ms=60_000)),
    )
    client.hset(
        KEYS.stages_minute(4), mapping={"end_to_end:amn:normal:8": 10, f"end_to_end:amn:normal:{SUM}": 7_000}
    )
    times = history.last_minute(client, KEYS, service.now_ms)
    made = history.row_of(service, times, {"ood_delta": -0.1, "mean_id": 0.6, "n_id": 4.0, "unknown": 1.0})
    for command in history.commands(KEYS, made):
        client.execute_command(*command)
    client.xadd("amn:{main}:drift:history", {"row": "no JSON"})
    client.xadd("amn:{main}:drift:history", {"row": json.dumps([1])})
    [found] = history.read(client, KEYS)
    assert (found["submitted"], found["answered"], found["depth_amn"], found["oldest_ms"]) == (3, 7, 3, 1_500)
    assert (found["amn_workers"], found["fallback_workers"]) == (1, 0)
    assert (found["delta"], found["mean_id"], found["n_id"]) == (-0.1, 0.6, 4.0)
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= 0.8
    assert history.columns([found])["series"]["delta"] == [-0.1]


def test_the_share_of_an_hour_weighs_each_context_alike() -> None:
    counts = [(0, 0), (0, 0), (100, 100), (110, 1_100)]  # a minute of 100 at 100 %, and one of 1,000 at 1 %
    rows = [row(n * MIN, escalated=some, decided=all_) for n, (some, all_) in enumerate(counts)]
    assert history.hour_share(rows, "escalation_rate") == 0.1
    long_ago = [row(-70 * MIN, escalated=0, decided=0), row(-60 * MIN, escalated=5_000, decided=5_000)]
    assert history.hour_share([*long_ago, *rows], "escalation_rate") == pytest.approx(0.1)
    assert history.hour_share(rows[:1], "escalation_rate") is None
    assert history.hour_share([], "escalation_rate") is None


def test_history_keeps_a_day_and_an_hour_and_expires() -> None:
    client = fakeredis.FakeRedis()
    for minute in range(1_600):
        for command in history.commands(KEYS, row(minute * MIN)):
            client.execute_command(*command)
    assert client.xlen("amn:{main}:drift:history") == 1_500
    assert client.ttl("amn:{main}:drift:history") == pytest.approx(2 * 86_400, abs=5)
    assert len(history.read(client, KEYS, 10)) == 11
    assert history.read(client, KEYS, 10)[-1]["at_ms"] == 1_599 * MIN
