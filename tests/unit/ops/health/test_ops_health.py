"""The doctor's judgement, and its reading of the shadow's sums."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import fakeredis
import pytest

from amn.kernel import bindings as kernel
from amn.output import strict_json
from ops.drift.memory import minutes_between
from ops.drift.show.views import deltas
from ops.health import FAILURE, OK, WARNING, CheckResult, Facts, Report, check, machine
from ops.health.beside import BesideFacts, Crash
from ops.health.counters import read_counters
from ops.health.letters import LetterFacts
from ops.health.server import ServerFacts
from ops.health.streams import StreamFacts
from ops.health.workers import WorkerFacts
from producer.keys import Keys

EMPTY = StreamFacts(entries=0, leased=0, payload_bytes=0, oldest_age_ms=None)
MODELS = {"amn": "amn@0123", "fallback": "gru@89ab", "shadow": "gru@89ab"}


def worker(kind: str, **changes: Any) -> WorkerFacts:
    well = WorkerFacts(
        name=f"{kind}-host-1-a", kind=kind, pid=1, finished=5, seen_ms_ago=10, model=MODELS[kind]
    )
    return replace(well, **changes)


def facts(**changes: Any) -> Facts:
    well = Facts(
        url="redis://127.0.0.1",
        queue="main",
        server=ServerFacts(),
        streams=dict.fromkeys(("requests", "fallback", "shadow"), EMPTY),
        workers=[worker(kind) for kind in MODELS],
        letters=LetterFacts(),
        counters={},
        drift={},
        artifacts={"model": "amn@0123", "fallback": "gru@89ab", "policy": "budgeted@4567"},
        beside=BesideFacts(judged_ms_ago=30_000),
        now_ms=1_000_000,
    )
    return replace(well, **changes)


def found(name: str, **changes: Any) -> CheckResult:
    (result,) = [one for one in check(facts(**changes)) if one.check == name]
    return result


def test_a_service_that_is_well_has_only_good_findings() -> None:
    report = Report(facts=facts(), results=check(facts()))
    assert {result.level for result in report.results} == {OK}
    assert report.healthy


@pytest.mark.parametrize(
    ("name", "beside", "level", "text"),
    [
        ("judge", BesideFacts(), WARNING, "amn drift judge"),
        ("judge", BesideFacts(judged_ms_ago=200_000), FAILURE, "200 s ago"),
        ("sender", BesideFacts(), OK, "nobody is told"),
        ("sender", BesideFacts(looked_ms_ago=30_000), OK, "30 s ago"),
        ("sender", BesideFacts(looked_ms_ago=200_000), FAILURE, "amn alerts run"),
        ("jobs", BesideFacts(jobs_workers=1, jobs_waiting=5), OK, "1 workers"),
        ("jobs", BesideFacts(jobs_waiting=5), FAILURE, "amn jobs worker"),
    ],
)
def test_what_runs_beside_the_workers_is_looked_at(
    name: str, beside: BesideFacts, level: str, text: str
) -> None:
    result = found(name, beside=beside)
    assert result.level == level
    assert text in result.text


def test_an_error_that_ended_a_process_is_shown_until_one_comes_after_it() -> None:
    ended = Crash(kind="amn", host="box", ms_ago=60_000, text="model amn_7 is altered")
    older = replace(ended, ms_ago=90_000, text="an older one")
    cases: list[tuple[list[WorkerFacts], str]] = [
        ([], FAILURE),
        ([worker("amn", host="box", started_at_ms=1_000_000 - 70_000)], FAILURE),
        ([worker("amn", host="other", started_at_ms=1_000_000 - 50_000)], FAILURE),
        ([worker("amn", host="box", started_at_ms=1_000_000 - 50_000)], OK),
    ]
    for workers, level in cases:
        beside = BesideFacts(judged_ms_ago=1, failures=(ended, older))
        result = found("failures", beside=beside, workers=workers)
        assert result.level == level
        assert "older" not in result.text
    judge_ended = replace(ended, kind="judge")
    for judged_ms_ago, level in ((30_000, OK), (90_000, FAILURE)):
        beside = BesideFacts(judged_ms_ago=judged_ms_ago, failures=(judge_ended,))
        assert found("failures", beside=beside).level == level
    assert "amn_7 is altered" in found("failures", beside=beside).text


@pytest.mark.parametrize(("maxmemory", "level"), [(0, WARNING), (1 << 30, FAILURE)])
def test_eviction_fails_when_memory_is_limited_and_warns_else(maxmemory: int, level: str) -> None:
    server = ServerFacts(maxmemory_policy="allkeys-lru", maxmemory_bytes=maxmemory)
    assert found("eviction", server=server).level == level


def test_missing_persistence_is_a_warning_and_a_failed_write_a_failure() -> None:
    assert found("persistence", server=ServerFacts(append_only=False)).level == WARNING
    assert found("persistence", server=ServerFacts(append_only_status="err")).level == FAILURE


@pytest.mark.parametrize(
    ("version", "level"), [("6.2.14", FAILURE), ("7.0.15", OK), ("7.2.4", OK), ("10.0.0", OK)]
)
def test_a_server_older_than_its_commands_fails(version: str, level: str) -> None:
    assert found("version", server=ServerFacts(compatible=version, version=version)).level == level


@pytest.mark.parametrize(
    ("limit", "total", "level"),
    [(1000, 0, OK), (600, 0, WARNING), (520, 0, FAILURE), (0, 1000, OK), (0, 520, FAILURE), (0, 0, OK)],
)
def test_memory_near_its_limit_is_said_before_writes_are_refused(limit: int, total: int, level: str) -> None:
    server = ServerFacts(used_memory_bytes=500, maxmemory_bytes=limit, total_memory_bytes=total)
    assert found("memory", server=server).level == level


@pytest.mark.parametrize(("skew_ms", "level"), [(40, OK), (-400, OK), (2_500, WARNING)])
def test_a_clock_that_is_not_the_servers_is_said(skew_ms: float, level: str) -> None:
    assert found("clock", server=ServerFacts(skew_ms=skew_ms)).level == level


@pytest.mark.parametrize(("kind", "level"), [("amn", FAILURE), ("fallback", FAILURE), ("shadow", WARNING)])
def test_a_missing_worker_kind_is_found(kind: str, level: str) -> None:
    others = [one for one in facts().workers if one.kind != kind]
    assert found(f"{kind} workers", workers=others).level == level


def test_a_worker_that_lives_and_ends_nothing_is_a_failure() -> None:
    stuck = found("progress", workers=[worker("amn", stuck_ms=40_000), worker("fallback"), worker("shadow")])
    assert stuck.level == FAILURE
    assert "amn-host-1-a for 40 s" in stuck.text


def test_workers_that_do_not_serve_what_the_links_name_are_a_warning() -> None:
    old = found("models", artifacts=facts().artifacts | {"model": "amn@4567"})
    assert old.level == WARNING
    assert "serves amn@0123, the link names amn@4567" in old.text
    assert found("models", artifacts={"model": "missing: x"}).level == OK  # a machine without models


def test_a_worker_of_the_second_place_serves_the_second_fallback() -> None:
    workers = [*facts().workers, worker("fallback", model="transformer@1")]
    assert found("models", workers=workers).level == WARNING
    both = facts().artifacts | {"secondary": "transformer@1"}
    assert found("models", workers=workers, artifacts=both).level == OK


def test_an_old_entry_means_that_nobody_serves_it() -> None:
    old = StreamFacts(entries=7, leased=7, payload_bytes=1, oldest_age_ms=60_000)
    streams = facts().streams | {"requests": old, "shadow": old}
    assert found("requests stream", streams=streams).level == FAILURE
    assert found("shadow stream", streams=streams).level == OK  # slow by design


def test_leases_that_nobody_renews_or_takes_over_are_a_failure() -> None:
    stale = StreamFacts(entries=7, leased=7, payload_bytes=1, oldest_age_ms=5, stale=3)
    leases = found("leases", streams=facts().streams | {"fallback": stale})
    assert leases.level == FAILURE
    assert "3 on fallback" in leases.text


def test_dead_letters_are_a_warning_and_a_growing_number_a_failure() -> None:
    few = LetterFacts(entries=2, reasons={"undecodable": 2}, recent=2)
    assert found("dead letters", letters=few).level == WARNING
    growing = found("dead letters", letters=replace(few, entries=150, recent=100))
    assert growing.level == FAILURE
    assert growing.text.startswith("100 or more new in 10 minutes")
    assert "the oldest are dropped" in found("dead letters", letters=replace(few, entries=9_500)).text


def test_missing_artifacts_are_a_warning_and_altered_ones_a_failure() -> None:
    assert found("bank", artifacts={"bank": "missing: x"}).level == WARNING
    assert found("model", artifacts={"model": "altered: x"}).level == FAILURE


def test_without_a_server_the_reportsays_so_in_json_too() -> None:
    without = Report(facts=None, results=[CheckResult(FAILURE, "server", "no usable server")])
    assert without.to_json() == {
        "healthy": False,
        "findings": [{"level": FAILURE, "check": "server", "text": "no usable server"}],
        "repaired": [],
    }


def test_the_delta_of_the_report_is_that_of_the_minutes_up_to_now_whether_or_not_a_judge_learned() -> None:
    client, keys, now_ms = fakeredis.FakeRedis(), Keys("main"), 29_900_163 * 60_000
    assert deltas(client, keys, now_ms) == {}
    for slice_, cosine in (("ood", 0.5), ("id", 0.6)):
        if slice_ == "id":
            assert deltas(client, keys, now_ms) == {}  # no data is not a delta of 0
        name = f"amn@1|general|{slice_}|true|"
        sums = {"predictions": 4, "n": 4, "amn.sum": 4e6 * cosine, "amn.squares": 4e6 * cosine**2}
        minute = now_ms // 60_000
        client.zadd(keys.drift_minutes, {str(minute): minute})
        fields = {name + stat: int(amount) for stat, amount in sums.items()}
        client.hset(keys.drift_minute_prefix + str(minute), mapping=fields)
    drift = deltas(client, keys, now_ms)
    assert drift["amn@1"]["ood_delta"] == pytest.approx(-0.1)
    assert drift["amn@1"]["n_id"] == 4
    shown = json.loads(strict_json(Report(facts=facts(drift=drift)).to_json()))["drift"]
    assert shown["amn@1"]["ood_delta"] == pytest.approx(-0.1)


def test_a_hash_that_somebody_filled_with_names_hides_no_counter_that_a_rule_looks_at() -> None:
    client, keys = fakeredis.FakeRedis(), Keys("main")
    ours = {"answered": 5, "worker_died:amn": 7, "batch:contexts": 9}
    client.hset(keys.stats, mapping={**ours, **{f"reason:{n}": 1 for n in range(1_001)}})
    assert read_counters(client, keys) == ours


def test_minutes_are_added_up_and_old_ones_left_out() -> None:
    client, keys = fakeredis.FakeRedis(), Keys("main")
    for minute, value in ((100, 1), (200, 2), (201, 4)):
        client.zadd(keys.drift_minutes, {str(minute): minute})
        client.hset(keys.drift_minute_prefix + str(minute), "m|general|id|true|n", value)
    found = [sums["m|general|id|true|n"] for _, sums in minutes_between(client, keys, 142, 201)]
    assert sum(found) == 6


def test_loops_that_are_in_use_are_good() -> None:
    assert found("loops", loops="").level == OK


@pytest.mark.parametrize(
    ("why", "text"),
    [
        ("not built", "installed without a C compiler; on x86-64 take the wheel for Linux, or install gcc"),
        ("outdated", "built from other sources"),
        ("processor", "lacks AVX2 or FMA; run AMN workers on one that has both"),
    ],
)
def test_loops_that_are_not_in_use_are_a_warning_that_says_what_to_do(why: str, text: str) -> None:
    without = found("loops", loops=why)
    assert without.level == WARNING
    assert text in without.text
    assert Report(facts=facts(), results=[without]).healthy


def test_another_distribution_with_a_package_of_our_name_is_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owners = {"ops": ["ops", "amn-queue"], "workers": ["amn-queue"], "yaml": ["PyYAML"]}
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: owners)
    assert machine.read_neighbours() == {"ops": ["ops"]}
    shared = found("packages", neighbours=machine.read_neighbours())
    assert (shared.level, "ops (also of ops)" in shared.text) == (WARNING, True)
    assert found("packages", neighbours={}).level == OK


def test_the_doctor_reads_what_the_model_room_says_of_its_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.read_loops() == kernel.WHY
    monkeypatch.setattr(kernel, "WHY", "not built")
    assert machine.read_loops() == "not built"
