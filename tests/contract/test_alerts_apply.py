"""Findings become states and messages in one step, under a fence; on every server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis

from ops.alerts import AlertSettings, apply
from ops.alerts.silences import SILENCES_MAX, Silence, add_silence, end_silence, silences
from ops.alerts.store import KEPT_S, OUTBOX_MAX, alerts, outbox_key, states_key
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


def outbox(client: redis.Redis) -> list[dict[str, Any]]:
    return [json.loads(fields[b"message"]) for _, fields in client.xrange(outbox_key(KEYS))]


def test_a_trigger_and_a_resolve_reach_the_outbox_once(server: Any, judge: Any) -> None:
    for minute in range(60):
        judge(minute, firing() if minute < 40 else firing(state="ok"))
    told = outbox(server.admin)
    assert [message["kind"] for message in told] == ["trigger", "resolve"]
    assert told[0]["alert"]["id"] == told[1]["alert"]["id"]
    assert server.admin.ttl(outbox_key(KEYS)) > KEPT_S - 60
    assert server.admin.ttl(states_key(KEYS)) > KEPT_S - 60


def test_a_judge_that_was_replaced_writes_nothing(server: Any, judge: Any) -> None:
    for minute in range(5):
        assert judge(minute, firing(), fence=6) == []
    assert alerts(server.admin, KEYS) == []
    assert outbox(server.admin) == []
    changes = [change for minute in (5, 6, 7) for change in judge(minute, firing())]
    assert [change.kind for change in changes] == ["", "trigger"]


def test_the_same_evaluation_again_tells_nothing_again(server: Any, judge: Any) -> None:
    for minute in (0, 1, 1, 2, 2, 2):
        judge(minute, firing())
    assert len(outbox(server.admin)) == 1


def test_series_of_one_rule_are_alerts_of_their_own(server: Any, judge: Any) -> None:
    both = [firing(lane="a"), firing(lane="b"), firing(rule="canary", state="insufficient")]
    for minute in range(3):
        judge(minute, *both)
    assert {alert.lane for alert in alerts(server.admin, KEYS)} == {"a", "b"}
    assert len(outbox(server.admin)) == 2


def test_rest_leaves_no_trace_and_a_resolved_alert_is_forgotten_after_a_day(server: Any, judge: Any) -> None:
    judge(0, firing(state="ok"))
    judge(1, firing())
    judge(2, firing(state="ok"))
    assert server.admin.hlen(states_key(KEYS)) == 0
    for minute in range(10, 60):
        judge(minute, firing() if minute < 41 else firing(state="ok"))
    assert [alert.phase for alert in alerts(server.admin, KEYS)] == ["ok"]
    judge(60 + 24 * 60, firing(state="ok"))
    assert alerts(server.admin, KEYS) == []


def test_a_silence_is_read_with_the_states(server: Any, judge: Any) -> None:
    silence = Silence.new(until_ms=START + 10 * MIN, made_ms=START, reason="known", author="me", rule="level")
    assert add_silence(server.admin, KEYS, silence)
    for minute in range(10):
        judge(minute, firing())
    assert [alert.silence for alert in alerts(server.admin, KEYS)] == [silence.id]
    assert outbox(server.admin) == []
    judge(10, firing())
    assert [message["kind"] for message in outbox(server.admin)] == ["trigger"]


def test_silences_end_are_capped_and_can_be_taken_back(server: Any) -> None:
    def one(until_ms: int, made_ms: int = START) -> Silence:
        return Silence.new(until_ms=until_ms, made_ms=made_ms, reason="r", author="a", rule="level")

    kept = [one(START + MIN) for _ in range(SILENCES_MAX)]
    assert all(add_silence(server.admin, KEYS, silence) for silence in kept)
    assert not add_silence(server.admin, KEYS, one(START + MIN))
    assert add_silence(server.admin, KEYS, one(START + 5 * MIN, made_ms=START + 2 * MIN))
    assert len(silences(server.admin, KEYS, START + 2 * MIN)) == 1
    assert server.admin.hlen(KEYS.alerts_prefix + "silences") == 1
    name = silences(server.admin, KEYS, START)[0].id
    assert end_silence(server.admin, KEYS, name)
    assert not end_silence(server.admin, KEYS, name)


def test_the_outbox_is_capped(server: Any, judge: Any) -> None:
    server.admin.execute_command("XADD", outbox_key(KEYS), "*", "message", "{}")
    with server.admin.pipeline() as pipe:
        for _ in range(OUTBOX_MAX):
            pipe.xadd(outbox_key(KEYS), {"message": "{}"})
        pipe.execute()
    judge(0, firing(evaluations=1))
    assert server.admin.xlen(outbox_key(KEYS)) == OUTBOX_MAX
    assert (
        json.loads(server.admin.xrevrange(outbox_key(KEYS), count=1)[0][1][b"message"])["kind"] == "trigger"
    )


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


def test_an_alert_that_cannot_be_told_is_not_written_down_as_told(real_server: Any) -> None:
    admin = real_server.admin
    admin.set(leader_key(KEYS), "7")
    admin.xadd(outbox_key(KEYS), {"x": "y"}, id="18446744073709551615-18446744073709551615")

    def evaluate(minute: int) -> Any:
        now_ms = START + minute * MIN
        return apply(admin, KEYS, (firing(),), now_ms=now_ms, fence=7, settings=AlertSettings())

    for minute in (0, 1):
        evaluate(minute)
    for minute in (2, 3):
        with pytest.raises(redis.ResponseError, match="exhausted"):
            evaluate(minute)
        assert [alert.phase for alert in alerts(admin, KEYS)] == ["pending"]
    admin.delete(outbox_key(KEYS))
    evaluate(4)
    assert [message["kind"] for message in outbox(admin)] == ["trigger"]
