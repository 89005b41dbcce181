"""`amn run`: the main job, end to end."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from command import Amn
from waiting import wait_until

pytestmark = pytest.mark.timeout(180)


def summary(out: str) -> dict[str, Any]:
    (line,) = out.splitlines()  # one object, and nothing else on standard output
    found: dict[str, Any] = json.loads(line)
    return found


def test_every_request_is_answered_once_and_the_json_says_so(amn: Amn) -> None:
    ended = amn("run", "--requests", 500, "--rate", 250, "--json")
    assert ended.code == 0, ended.err
    found = summary(ended.out)
    assert (found["requests"], found["answered"], found["failed"]) == (500, 500, 0)
    assert found["duplicates"] == 0
    assert 0 < found["escalated"] <= 0.25 * 500
    assert 0 < found["shadowed"] <= 0.1 * 500
    assert found["escalated"] == round(found["fallback_rate"] * 500)
    assert set(found["reasons"]) <= {"high_stakes_lane", "long_context", "low_confidence", "thin_margin"}
    assert found["stages_ms"]["amn"]["queue"]["requests"] == 500
    assert found["latency_ms"]["p50"] <= found["latency_ms"]["p95"] <= found["latency_ms"]["p99"]
    assert found["cosine"]["amn"] > found["cosine"]["last_vector"]
    amn.leaves_nothing()


def test_nothing_is_lost_when_a_worker_is_killed_half_way(amn: Amn) -> None:
    ended = amn("run", "--requests", 3000, "--rate", 0, "--workers", 2, "--kill-worker", "--json")
    assert ended.code == 0, ended.err
    found = summary(ended.out)
    assert (found["answered"], found["failed"], found["duplicates"]) == (3000, 0, 0)
    assert found["worker_restarts"] == 1
    times = found["stages_ms"]
    assert times.pop("client")["end_to_end"]["requests"] == 3000
    # The killed one took a second of its counts with it; nothing that it left behind counts twice.
    ends = [stages["end_to_end"]["requests"] for stages in times.values() if "end_to_end" in stages]
    assert 1000 < sum(ends) <= 3000
    amn.leaves_nothing()


def test_a_run_on_somebodys_server_leaves_its_keys_alone_and_its_own_removed(
    amn: Amn, tmp_path: Path
) -> None:
    import redis

    from ops.local.server import Server, ServerSettings

    with Server(ServerSettings()) as server, redis.Redis.from_url(server.url) as client:
        client.set("theirs", "1")
        ended = amn("run", "--requests", 200, "--rate", 0, "--workers", 1, REDIS_URL=server.url)
        assert ended.code == 0, ended.err
        assert "answered exactly once" in ended.out
        assert client.keys("*") == [b"theirs"]
        assert server.alive()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process(amn: Amn, number: signal.Signals) -> None:
    process = amn.start("run", "--requests", 100_000, "--rate", 100, "--workers", 1)
    wait_until(lambda: len(amn.processes()) >= 5)  # itself, guard, server and workers
    process.send_signal(number)
    assert process.wait(40) in (130, 143)
    amn.leaves_nothing()


def test_a_run_that_is_killed_outright_takes_server_and_workers_along(amn: Amn) -> None:
    process = amn.start("run", "--requests", 100_000, "--rate", 100, "--workers", 1)
    wait_until(lambda: len(amn.processes()) >= 5)
    process.kill()
    process.wait(10)
    amn.leaves_nothing()


def test_a_model_that_does_not_hold_stops_the_run_with_one_line(amn: Amn, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = amn("run", "--requests", 10, AMN_ARTIFACTS=str(tmp_path / "empty"))
    assert ended.code == 1
    assert ended.err.startswith("amn: a worker did not start: ")
    assert ended.err.count("\n") == 1
    amn.leaves_nothing()
