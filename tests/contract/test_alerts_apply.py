"""Findings become alerts and ended incidents in one step, under a fence; on every server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis

from ops.alerts import AlertSettings, apply, books
from ops.alerts.silences import SILENCES_MAX, Silence, add_silence, end_silence, silences
from ops.alerts.store import ENDED_MAX, KEPT_S, alerts
from ops.findings import Finding
from ops.leader import leader_key
from producer.keys import Keys

MIN = 60_000
START = 1_000_000_000_000
KEYS = Keys("main")


def firing(**values: Any) -> Finding:
    return Finding(**{"rule": "level", "severity": "page", "state": "firing", "model": "m", **values})


@pytest.fixture
def judge(server: Any) -> Callable[..., Any]:
    """Evaluates findings at a minute, as the leader."""
    server.admin.set(leader_key(KEYS), "7")

    def at(minute: int, *findings: Finding, fence: int = 7) -> Any:
        return apply(
            server.admin,
            KEYS,
            findings,
            now_ms=START + minute * MIN,
            fence=fence,
            settings=AlertSettings(),
        )

    return at


def told(client: redis.Redis) -> list[str]:
    """Phases of the incidents that a sender is to tell."""
    return [alert.phase for alert in books.read(client, KEYS).incidents]


def test_an_incident_is_told_as_open_and_then_as_ended(server: Any, judge: Any) -> None:
    changes = []
    for minute in range(60):
        changes += judge(minute, firing() if minute < 40 else firing(state="ok"))
        if minute < 40:
            assert told(server.admin) == ["firing"] * (minute >= 2)
    assert told(server.admin) == ["ok"]
    assert [change.kind for change in changes if change.kind] == ["trigger", "resolve"]
    assert len({change.alert.id for change in changes}) == 1
    assert server.admin.ttl(KEYS.alerts_prefix + "ended") > KEPT_S - 60
    assert server.admin.ttl(KEYS.alerts_prefix + "states") > KEPT_S - 60


def test_a_judge_that_was_replaced_writes_nothing(server: Any, judge: Any) -> None:
    for minute in range(5):
        assert judge(minute, firing(), fence=6) == []
    assert alerts(server.admin, KEYS) == []
    assert told(server.admin) == []
    changes = [change for minute in (5, 6, 7) for change in judge(minute, firing())]
    assert [change.kind for change in changes] == ["", "trigger"]


def test_the_same_evaluation_again_tells_nothing_again(server: Any, judge: Any) -> None:
    for minute in (0, 1, 1, 2, 2, 2):
        judge(minute, firing())
    assert len(told(server.admin)) == 1


def test_series_of_one_rule_are_alerts_of_their_own(server: Any, judge: Any) -> None:
    both = [firing(lane="a"), firing(lane="b"), firing(rule="canary", state="insufficient")]
    for minute in range(3):
        judge(minute, *both)
    assert {alert.lane for alert in alerts(server.admin, KEYS)} == {"a", "b"}
    assert len(told(server.admin)) == 2


def test_rest_leaves_no_trace_and_a_resolved_alert_is_forgotten_after_a_day(server: Any, judge: Any) -> None:
    judge(0, firing(state="ok"))
    judge(1, firing())
    judge(2, firing(state="ok"))
    assert server.admin.hlen(KEYS.alerts_prefix + "states") == 0
    for minute in range(10, 60):
        judge(minute, firing() if minute < 41 else firing(state="ok"))
    assert [alert.phase for alert in alerts(server.admin, KEYS)] == ["ok"]
    judge(60 + 24 * 60, firing(state="ok"))
    assert alerts(server.admin, KEYS) == []


def test_a_silence_is_read_with_the_states(server: Any, judge: Any) -> None:
    silence = Silence(until_ms=START + 10 * MIN, made_ms=START, reason="known", author="me", rule="level")
    assert add_silence(server.admin, KEYS, silence)
    for minute in range(10):
        judge(minute, firing())
    assert [alert.silence for alert in alerts(server.admin, KEYS)] == [silence.id]
    assert told(server.admin) == []
    judge(10, firing())
    assert told(server.admin) == ["firing"]


def test_silences_end_are_capped_and_can_be_taken_back(server: Any) -> None:
    def one(until_ms: int, made_ms: int = START) -> Silence:
        return Silence(until_ms=until_ms, made_ms=made_ms, reason="r", author="a", rule="level")

    kept = [one(START + MIN) for _ in range(SILENCES_MAX)]
    assert all(add_silence(server.admin, KEYS, silence) for silence in kept)
    assert not add_silence(server.admin, KEYS, one(START + MIN))
    assert add_silence(server.admin, KEYS, one(START + 5 * MIN, made_ms=START + 2 * MIN))
    assert len(silences(server.admin, KEYS, START + 2 * MIN)) == 1
    assert server.admin.hlen(KEYS.alerts_prefix + "silences") == 1
    name = silences(server.admin, KEYS, START)[0].id
    assert end_silence(server.admin, KEYS, name)
    assert not end_silence(server.admin, KEYS, name)


def test_what_waits_for_a_sender_is_capped(server: Any, judge: Any) -> None:
    with server.admin.pipeline() as pipe:
        for _ in range(ENDED_MAX + 1):
            pipe.xadd(KEYS.alerts_prefix + "ended", {"alert": "{}"})
        pipe.execute()
    for minute in range(45):
        judge(minute, firing() if minute < 31 else firing(state="ok"))
    assert server.admin.xlen(KEYS.alerts_prefix + "ended") == ENDED_MAX
    last = json.loads(server.admin.xrevrange(KEYS.alerts_prefix + "ended", count=1)[0][1][b"alert"])
    assert (last["rule"], last["phase"]) == ("level", "ok")


def test_two_queues_of_one_server_have_alerts_of_their_own(server: Any) -> None:
    ids = set()
    for queue in ("main", "other"):
        keys = Keys(queue)
        server.admin.set(leader_key(keys), "1")
        made = apply(
            server.admin, keys, [firing(evaluations=1)], now_ms=START, fence=1, settings=AlertSettings()
        )
        ids.add(made[0].alert.id)
    assert len(ids) == 2


def test_an_end_that_cannot_be_told_is_not_written_down(real_server: Any) -> None:
    admin = real_server.admin
    admin.set(leader_key(KEYS), "7")
    admin.xadd(KEYS.alerts_prefix + "ended", {"x": "y"}, id="18446744073709551615-18446744073709551615")

    def evaluate(minute: int) -> Any:
        now_ms, found = START + minute * MIN, firing(state="firing" if minute < 31 else "ok")
        return apply(admin, KEYS, (found,), now_ms=now_ms, fence=7, settings=AlertSettings())

    for minute in range(41):
        evaluate(minute)
    for minute in (41, 42):
        with pytest.raises(redis.ResponseError, match="exhausted"):
            evaluate(minute)
        assert [alert.phase for alert in alerts(admin, KEYS)] == ["recovering"]
    admin.delete(KEYS.alerts_prefix + "ended")
    evaluate(43)
    assert told(admin) == ["ok"]
