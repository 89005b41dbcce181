"""The doctor's judgement, and its reading of the shadow's sums."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import fakeredis
import pytest

from ops.drift.store import read_window
from ops.drift.window import summary
from ops.health import FAILURE, OK, WARNING, Facts, Report, StreamFacts, WorkerFacts, judge
from producer.keys import Keys

EMPTY = StreamFacts(entries=0, leased=0, payload_bytes=0, oldest_age_ms=None)


def facts(**changes: Any) -> Facts:
    workers = [
        WorkerFacts(name=f"{kind}-host-1-a", kind=kind, pid=1, finished=5, seen_ms_ago=10)
        for kind in ("amn", "fallback", "shadow")
    ]
    server = {
        "maxmemory_policy": "noeviction",
        "maxmemory_bytes": 0,
        "append_only": True,
        "append_only_status": "ok",
    }
    well = Facts(
        url="redis://127.0.0.1",
        queue="main",
        server=server,
        streams=dict.fromkeys(("requests", "fallback", "shadow"), EMPTY),
        workers=workers,
        dead={},
        dead_entries=0,
        counters={},
        drift={},
        artifacts={"model": "amn@0123", "policy": "budgeted@4567"},
    )
    changes["server"] = server | changes.get("server", {})
    return replace(well, **changes)


def levels(found: Facts) -> dict[str, str]:
    return {finding.check: finding.level for finding in judge(found)}


def test_a_service_that_is_well_has_only_good_findings() -> None:
    report = Report(facts=facts(), findings=judge(facts()))
    assert {finding.level for finding in report.findings} == {OK}
    assert report.healthy


@pytest.mark.parametrize(("maxmemory", "level"), [(0, WARNING), (1 << 30, FAILURE)])
def test_eviction_fails_when_memory_is_limited_and_warns_else(maxmemory: int, level: str) -> None:
    server = {"maxmemory_policy": "allkeys-lru", "maxmemory_bytes": maxmemory}
    assert levels(facts(server=server))["eviction"] == level


def test_missing_persistence_is_a_warning_and_a_failed_write_a_failure() -> None:
    assert levels(facts(server={"append_only": False}))["persistence"] == WARNING
    assert levels(facts(server={"append_only_status": "err"}))["persistence"] == FAILURE


@pytest.mark.parametrize(("kind", "level"), [("amn", FAILURE), ("fallback", FAILURE), ("shadow", WARNING)])
def test_a_missing_worker_kind_is_found(kind: str, level: str) -> None:
    found = facts()
    workers = [worker for worker in found.workers if worker.kind != kind]
    assert levels(facts(workers=workers))[f"{kind} workers"] == level


def test_an_old_entry_means_that_nobody_serves_it() -> None:
    old = StreamFacts(entries=7, leased=7, payload_bytes=1, oldest_age_ms=60_000)
    streams = facts().streams | {"requests": old, "shadow": old}
    found = levels(facts(streams=streams))
    assert found["requests stream"] == FAILURE
    assert found["shadow stream"] == OK  # slow by design


def test_dead_letters_and_missing_artifacts_are_warnings() -> None:
    found = levels(facts(dead={"undecodable": 2}, dead_entries=2, artifacts={"bank": "missing: x"}))
    assert found["dead letters"] == WARNING
    assert found["bank"] == WARNING


SUMS = {
    "amn@1|general|id|true|predictions": 12,
    "amn@1|general|id|true|n": 10,
    "amn@1|general|id|true|amn.sum": 5_000_000,
    "amn@1|general|id|true|amn.squares": 2_600_000,
    "amn@1|general|ood|true|n": 4,
    "amn@1|general|ood|true|amn.sum": 2_400_000,
    "amn@1|general|ood|true|amn.squares": 1_440_000,
    "amn@2|general|ood|true|n": 1,
    "amn@2|general|ood|true|amn.sum": 100_000,
    "amn@1|general|ood|stronger|n": 50,
    "amn@1|general|ood|stronger|amn.sum": -50_000_000,
    "something of a later version": 3,
}


def test_the_delta_is_of_true_vectors_of_one_model() -> None:
    found = summary(SUMS)
    assert sorted(found) == ["amn@1", "amn@2"]
    slices, delta = found["amn@1"].slices, found["amn@1"].ood_delta
    assert slices["id"].predictions == 12
    assert slices["id"].scores["amn"].sd == pytest.approx(0.1 * (10 / 9) ** 0.5)
    assert slices["ood"].scores["amn"].sd == pytest.approx(0.0, abs=1e-6)
    assert delta is not None
    assert delta.value == pytest.approx(0.6 - 0.5)
    assert delta.standard_error == pytest.approx(0.1 / 9**0.5)


def test_without_both_slices_there_is_no_delta() -> None:
    found = summary({name: n for name, n in SUMS.items() if "|ood|" not in name})
    assert found["amn@1"].ood_delta is None


def test_the_json_has_the_delta_by_model_and_null_for_what_cannot_be_told() -> None:
    report = Report(facts=facts(drift=summary(SUMS)), findings=[])
    text = json.dumps(report.to_json(), allow_nan=False)
    drift = json.loads(text)["drift"]
    assert drift["amn@1"]["ood_delta"]["value"] == pytest.approx(0.1)
    assert drift["amn@1"]["slices"]["id"]["n"] == 10
    assert drift["amn@2"]["ood_delta"] is None
    assert drift["amn@2"]["slices"]["ood"]["scores"]["amn"]["sd"] is None  # of one request


def test_minutes_are_added_up_and_old_ones_left_out() -> None:
    client, keys = fakeredis.FakeRedis(), Keys("main")
    for minute, value in ((100, 1), (200, 2), (201, 4)):
        client.zadd(keys.drift_minutes, {str(minute): minute})
        client.hset(keys.drift_minute_prefix + str(minute), "m|general|id|true|n", value)
    assert read_window(client, keys, 201 * 60_000, hours=1) == {"m|general|id|true|n": 6}
