"""Real senders on real servers: killed at any moment, with receivers that fail and come back."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from receiver import Receiver, running

from ops.alerts import AlertSettings, apply, books
from ops.clock import server_now_ms
from ops.findings import Finding
from ops.leader import leader_key
from producer.keys import Keys

MIN = 60_000
KEYS = Keys("main")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running() as one:
        yield one


@pytest.fixture
def senders(tmp_path: Path, receiver: Receiver) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts `amn alerts run`; kills what is left."""
    config = tmp_path / "alerts.toml"
    config.write_text(
        f"""
        [sinks.pager]
        type = "pagerduty"
        routing_key = {{ env = "TEST_KEY" }}
        url = "{receiver.url}/v2/enqueue"
        """,
        "utf-8",
    )
    started: list[subprocess.Popen[bytes]] = []

    def start(url: str) -> subprocess.Popen[bytes]:
        log = (tmp_path / f"sender-{len(started)}.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "ops.cli", "alerts", "run", "--config", str(config), "--url", url],
            env={**os.environ, "TEST_KEY": "R" * 32},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        log.close()
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def judge(client: Any, minute: int, state: Any, began_ms: int) -> None:
    """One evaluation of a judge that leads, `minute` minutes after `began_ms`."""
    client.set(leader_key(KEYS), "1")
    found = Finding(rule="level", severity="page", state=state, model="m")
    now_ms = began_ms + minute * MIN
    apply(client, KEYS, [found], now_ms=now_ms, fence=1, settings=AlertSettings())


def wait(true: Callable[[], bool], seconds: float = 60, every_s: float = 0.05) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(every_s)


def actions(receiver: Receiver) -> list[str]:
    return [call.json["event_action"] for call in receiver.accepted()]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_incident_reaches_the_receiver_once_while_senders_are_killed(
    make_server: Any, receiver: Receiver, senders: Any
) -> None:
    """Every sender is killed soon; a call that was under way may be made twice, with one key."""
    server = make_server()
    client, began_ms = server.client(), server_now_ms(server.client())
    receiver.answers = [500, (429, {"Retry-After": "1"}), 0]
    for minute in range(3):
        judge(client, minute, "firing", began_ms)
    choose = random.Random(7)
    for _ in range(4):
        process = senders(server.url)
        wait(lambda: bool(client.exists(KEYS.alerts_prefix + "leader")))
        time.sleep(choose.uniform(0.0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        client.delete(KEYS.alerts_prefix + "leader")
    for minute in (34, *range(35, 50)):
        judge(client, minute, "firing" if minute == 34 else "ok", began_ms)
    senders(server.url)
    wait(lambda: len(books.log(client, KEYS, "sent")) == 2, 150)
    assert [one["kind"] for one in books.log(client, KEYS, "sent")] == ["resolve", "trigger"]
    told = actions(receiver)
    assert sorted(set(told), reverse=True) == list(dict.fromkeys(told)) == ["trigger", "resolve"]
    assert len({call.json["dedup_key"] for call in receiver.calls}) == 1
    wait(lambda: books.read(client, KEYS).receipts == {})


def test_a_receiver_that_hangs_or_is_away_gets_it_when_it_is_back(
    real_server: Any, receiver: Receiver, senders: Any
) -> None:
    client, began_ms = real_server.admin, server_now_ms(real_server.admin)
    receiver.stop()
    for minute in range(3):
        judge(client, minute, "firing", began_ms)
    process = senders(real_server.url)
    wait(lambda: any("ConnectError" in one["error"] for one in books.read(client, KEYS).undelivered()))
    receiver.start()
    wait(lambda: actions(receiver) == ["trigger"])
    process.terminate()
    assert process.wait(30) == 0
    assert actions(receiver) == ["trigger"]
    assert not client.exists(KEYS.alerts_prefix + "leader")


def test_the_sender_runs_no_function_but_its_own(
    real_server: Any, receiver: Receiver, senders: Any, tmp_path: Path
) -> None:
    """Earlier senders took their attempts from an RQ queue; whatever lies there, nobody runs it any more."""
    client, began_ms = real_server.admin, server_now_ms(real_server.admin)
    process = senders(real_server.url)
    wait(lambda: bool(client.exists(KEYS.alerts_prefix + "leader")))
    other = {"config": "/tmp/mine.toml", "queue": "main", "line": "pager|x", "message": "m-1-0", "number": 1}
    calls = {
        "shell": ["os.system", None, [f"touch {tmp_path}/proof"], {}],
        "other": ["ops.alerts.delivery.deliver_job", None, [], other],
        "number": ["ops.alerts.delivery.deliver_job", None, [], {"line": "x", "message": "m", "number": "1"}],
    }
    for name, call in calls.items():
        client.hset(f"rq:job:{name}", mapping={"data": json.dumps(call), "failure_callback_name": "os.abort"})
        client.rpush("rq:queue:amn-alerts-main", name)
    client.rpush("rq:queue:amn-alerts-main", b"\xff")
    for minute in range(3):
        judge(client, minute, "firing", began_ms)
    wait(lambda: actions(receiver) == ["trigger"])
    assert process.poll() is None
    assert not (tmp_path / "proof").exists()
    assert not client.exists("rq:workers")
    assert client.llen("rq:queue:amn-alerts-main") == len(calls) + 1


def test_a_sender_outlives_its_server(make_server: Any, receiver: Receiver, senders: Any) -> None:
    server = make_server("valkey", arguments=("--appendonly", "yes", "--appendfsync", "always"))
    senders(server.url)
    client = server.client()
    wait(lambda: bool(client.exists(KEYS.alerts_prefix + "leader")))
    began_ms = server_now_ms(client)
    for minute in range(2):
        judge(client, minute, "firing", began_ms)
    client.close()
    server.kill()
    time.sleep(1.5)
    server.start()
    client = server.client()
    wait(lambda: client.get(leader_key(KEYS)) is not None)
    judge(client, 2, "firing", began_ms)
    wait(lambda: actions(receiver) == ["trigger"], 90)
    client.close()


_JUDGE = """
import sys
import redis
from ops.alerts import AlertSettings, apply
from ops.findings import Finding
from ops.leader import Leadership
from producer.keys import Keys

client, keys = redis.Redis(unix_socket_path=sys.argv[1]), Keys("main")
leadership = Leadership(client, keys, 300)
while (minute := int(client.get("minute") or 0)) < 500:
    if fence := leadership.lead():
        state = "firing" if minute % 100 < 60 else "ok"
        common = dict(rule="level", severity="page", state=state, model="m")
        found = [Finding(**common, lane=str(n)) for n in range(3)]
        now_ms = 1_800_000_000_000 + minute * 60_000
        apply(client, keys, found, now_ms=now_ms, fence=fence, settings=AlertSettings())
        client.set("minute", minute + 1)
"""


def test_judges_that_are_killed_lose_no_message_and_double_none(
    real_server: Any, receiver: Receiver, senders: Any
) -> None:
    """A judge that dies after `apply` and before it wrote its own state judges the same minute again.

    A sender that comes afterwards tells each incident of each lane, and its end, in their order.
    """
    client, path = real_server.admin, real_server.url.removeprefix("unix://")
    choose, deaths = random.Random(3), 0
    while (before := int(client.get("minute") or 0)) < 500:
        process = subprocess.Popen([sys.executable, "-c", _JUDGE, path], stderr=subprocess.PIPE)
        wanted = min(before + choose.randint(1, 60), 500)
        wait(lambda wanted=wanted: int(client.get("minute") or 0) >= wanted, every_s=0.001)  # type: ignore[misc]
        process.kill()
        deaths += process.wait() == -signal.SIGKILL
        _, said = process.communicate()
        assert said == b""
    assert deaths >= 1
    assert [one.phase for one in books.read(client, KEYS).incidents] == ["ok"] * 15
    senders(real_server.url)
    wait(lambda: len(actions(receiver)) == 30)
    lanes = {
        call.json["payload"]["group"]: call.json["dedup_key"]
        for call in receiver.calls
        if "payload" in call.json
    }
    for lane in "012":
        mine = [call.json for call in receiver.calls if call.json["dedup_key"] == lanes[lane]]
        assert [call["event_action"] for call in mine] == ["trigger", "resolve"] * 5
    wait(lambda: books.read(client, KEYS).receipts == {})
