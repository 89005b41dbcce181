"""What the doctor reads from a server, in the states that it must tell apart.

Real servers only: the fake one has no INFO.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from recalibrated import recalibrated
from rig import answer, show_worker

from ops.app import run
from ops.errors import Unhealthy
from ops.health import FAILURE, OK, WARNING, alive
from producer import Options, Producer
from producer.keys import GROUP, Keys
from producer.messages import Request
from producer.protocol import wire
from producer.transport.library import library
from workers.settings import worker_name

KEYS = Keys()
ARTIFACTS = Path(__file__).resolve().parents[2] / "artifacts" / "lvm"
Examine = Callable[..., dict[str, Any]]


@pytest.fixture
def examine(real_server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Examine:
    """Runs `amn doctor --json`; its findings by check, and the exit code as `code`."""
    monkeypatch.setenv("REDIS_URL", real_server.url)

    def examine(*words: str, artifacts: Path = ARTIFACTS) -> dict[str, Any]:
        code = run(["doctor", "--json", "--artifacts", str(artifacts), *words])
        report = json.loads(capsys.readouterr().out)
        return {"code": code, "report": report} | {one["check"]: one for one in report["findings"]}

    return examine


def present(admin: Any, kind: str, **changes: Any) -> str:
    """A worker's presence, as its keeper writes it."""
    now_ms, name = int(time.time() * 1000), worker_name(kind)
    times = {"seen_at_ms": now_ms, "progress_at_ms": now_ms}
    fields = {"kind": kind, "host": socket.gethostname(), "pid": 1, "finished": 3, **times}
    show_worker(admin, name, fields | changes)
    return name


def test_a_worker_that_did_not_start_says_why(real_server: Any, examine: Examine, tmp_path: Path) -> None:
    words = ["amn", "--url", real_server.url, "--artifacts", str(tmp_path)]
    ended = subprocess.run([sys.executable, "-m", "workers", *words], capture_output=True, check=False)
    assert ended.returncode == 1
    seen = examine()["failures"]
    assert seen["level"] == FAILURE
    assert socket.gethostname() in seen["text"]
    assert str(tmp_path) in seen["text"]


def test_the_doctor_looks_at_the_artifacts_of_what_runs(
    real_server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("REDIS_URL", real_server.url)
    monkeypatch.chdir(tmp_path)

    def looked() -> tuple[str, str]:
        run(["doctor", "--json"])
        report = json.loads(capsys.readouterr().out)
        [text] = [one["text"] for one in report["findings"] if one["check"] == "artifacts"]
        return report["root"], text

    present(real_server.admin, "amn", host="another", artifacts="/elsewhere")
    root, text = looked()
    assert root == ""
    assert "not looked at" in text
    present(real_server.admin, "amn", artifacts=str(ARTIFACTS))
    root, text = looked()
    assert root == str(ARTIFACTS)
    assert "weights in" in text


def test_a_queue_with_its_workers_is_well(real_server: Any, examine: Examine) -> None:
    for kind in ("amn", "fallback", "shadow"):
        present(real_server.admin, kind)
    found = examine()
    bad = {name: one for name, one in found.items() if isinstance(one, dict) and one.get("level") == FAILURE}
    assert not bad
    assert found["code"] == 0
    assert found["report"]["healthy"]
    # The test's server keeps no append-only file: a warning, which fails when one asks for it.
    assert found["persistence"]["level"] == WARNING
    assert examine("--strict")["code"] == 1


def test_functions_of_another_version_are_named_with_what_to_do(real_server: Any, examine: Examine) -> None:
    assert examine()["functions"] == {
        "check": "functions",
        "level": OK,
        "text": "none loaded, or not shown to this user",
    }
    real_server.admin.function_load(library(), replace=True)
    assert examine()["functions"]["text"] == "those of this version"
    real_server.admin.function_load(library() + "-- an earlier one\n", replace=True)
    found = examine()["functions"]
    assert found["level"] == WARNING
    assert "amn wire functions --load" in found["text"]
    real_server.admin.function_flush()


def test_a_living_worker_without_progress_is_not_alive(real_server: Any, examine: Examine) -> None:
    stuck = present(real_server.admin, "amn", progress_at_ms=int(time.time() * 1000) - 60_000)
    found = examine()
    assert found["progress"]["level"] == FAILURE
    assert stuck in found["progress"]["text"]
    with pytest.raises(Unhealthy, match="ended nothing"):
        alive(real_server.admin, KEYS, "amn")
    well = present(real_server.admin, "amn")
    assert alive(real_server.admin, KEYS, "amn") == well


@pytest.mark.parametrize(
    ("mine", "sister"),
    [
        ("amn-queue-worker-production-5c9d8b7f4-x2k8q", "amn-queue-worker-production-5c9d8b7f4-zzzzz"),
        ("web", "web-2"),
        ("web.a", "web-a"),
    ],
)
def test_a_dead_worker_is_not_called_alive_for_a_sisters_sake(
    real_server: Any, monkeypatch: pytest.MonkeyPatch, mine: str, sister: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: sister)
    present(real_server.admin, "amn")
    monkeypatch.setattr(socket, "gethostname", lambda: mine)
    with pytest.raises(Unhealthy, match=f"no amn worker of host {mine} "):
        alive(real_server.admin, KEYS, "amn")
    well = present(real_server.admin, "amn")
    assert alive(real_server.admin, KEYS, "amn") == well


def test_a_worker_whose_clock_is_off_is_named(real_server: Any, examine: Examine) -> None:
    present(real_server.admin, "amn", clock_offset_ms=400)
    assert examine()["worker clocks"]["level"] == OK
    fast = present(real_server.admin, "amn", clock_offset_ms=60_000)
    found = examine()["worker clocks"]
    assert found["level"] == WARNING
    assert f"{fast} by +60.0 s" in found["text"]


def test_stale_leases_and_old_entries_are_found(
    real_server: Any, examine: Examine, contexts: Callable[..., NDArray[np.float32]]
) -> None:
    payload = wire.encode_request(Request(id="a", reply_to="client", context=contexts(1)[0]))
    entry = real_server.admin.xadd(KEYS.requests, {"request": payload}, id="1000-0")
    real_server.admin.xgroup_create(KEYS.requests, GROUP, id="0")
    real_server.admin.xreadgroup(GROUP, "gone", {KEYS.requests: ">"})
    assert examine()["leases"]["level"] == OK  # leased just now
    real_server.admin.xclaim(KEYS.requests, GROUP, "gone", 0, [entry], idle=60_000, justid=True)
    found = examine()
    assert found["leases"]["level"] == FAILURE
    assert "1 on requests" in found["leases"]["text"]
    assert found["requests stream"]["level"] == FAILURE
    assert found["code"] == 1


def test_dead_letters_that_grow_are_told_from_old_ones(real_server: Any, examine: Examine) -> None:
    for i in range(30):
        real_server.admin.xadd(KEYS.dead, {"reason": "undecodable"}, id=f"{1000 + i}-0")
    assert examine()["dead letters"]["level"] == WARNING
    for _ in range(30):
        real_server.admin.xadd(KEYS.dead, {"reason": "worker_died"})
    found = examine()["dead letters"]
    assert found["level"] == FAILURE
    assert found["text"].startswith("30 new in 10 minutes")


def test_a_calibration_of_another_model_is_named_with_both_ids_and_the_link(
    examine: Any, tmp_path: Path
) -> None:
    for link in ARTIFACTS.iterdir():
        if link.is_symlink() and link.name != "gate_calibration":
            (tmp_path / link.name).symlink_to(link.resolve())
    recalibrated(tmp_path / "gate_calibration", amn="amn@000000000000")
    found = examine(artifacts=tmp_path)
    assert found["policy"]["level"] == FAILURE
    assert "was fitted for amn@000000000000, production_model is amn@" in found["policy"]["text"]


def test_altered_weights_are_found_before_a_worker_meets_them(
    real_server: Any, examine: Examine, tmp_path: Path
) -> None:
    root = tmp_path / "lvm"
    shutil.copytree(ARTIFACTS / "production_model", root / "production_model")
    weights = root / "production_model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    found = examine(artifacts=root)
    assert found["model"]["level"] == FAILURE
    assert "not what its manifest describes" in found["model"]["text"]
    assert found["bank"]["level"] == WARNING


def test_without_a_server_the_json_still_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", f"unix://{tmp_path}/nothing")
    assert run(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["healthy"]
    assert [one["check"] for one in report["findings"]] == ["server"]


def test_a_limited_server_that_evicts_and_is_nearly_full_fails(
    make_server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = make_server(arguments=("--maxmemory-policy", "allkeys-lru", "--appendonly", "yes"))
    with server.client() as admin:
        admin.config_set("maxmemory", int(admin.info("memory")["used_memory"] * 1.05))
    monkeypatch.setenv("REDIS_URL", server.url)
    assert run(["doctor", "--json", "--artifacts", str(ARTIFACTS)]) == 1
    levels = {one["check"]: one["level"] for one in json.loads(capsys.readouterr().out)["findings"]}
    assert (levels["eviction"], levels["memory"]) == (FAILURE, FAILURE)
    assert (levels["persistence"], levels["version"], levels["clock"]) == (OK, OK, OK)


def test_a_watch_goes_on_until_it_is_interrupted(
    real_server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", real_server.url)
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("ops.commands.doctor.time.sleep", sleep)
    assert run(["doctor", "--watch", "2", "--json", "--artifacts", str(ARTIFACTS)]) == 130
    assert looks == [2.0] * 3
    assert len(capsys.readouterr().out.splitlines()) == 3


LAST_ID = "18446744073709551615-18446744073709551615"


def enqueue(producer: Producer, count: int, contexts: Any) -> list[Any]:
    return producer.submit_many(contexts(count), options=[Options(request_id=f"r{n}") for n in range(count)])


def used_up(admin: Any) -> None:
    admin.xadd(KEYS.requests, {"x": "y"}, id=LAST_ID)


def days_ahead(admin: Any) -> None:
    admin.xadd(KEYS.requests, {"x": "y"}, id=f"{int(time.time() * 1000) + 3 * 86_400_000}-0")


@pytest.mark.parametrize("deed", [used_up, days_ahead])
def test_a_repair_keeps_what_waits_in_order_and_what_is_leased_ends_once(
    deed: Callable[[Any], None], real_rig: Any, examine: Examine, contexts: Any
) -> None:
    rig, admin = real_rig, real_rig.admin
    queue = rig.queue("w", batch_max=3)
    with Producer(rig.url) as producer:
        handles = enqueue(producer, 6, contexts)
        (early, *_) = leased = queue.lease()
        deed(admin)
        found = examine()
        assert found["code"] == 1
        assert KEYS.requests in found["keys"]["text"]
        mended = examine("--repair")
        (line,) = mended["report"]["repaired"]
        assert line.startswith(f"{KEYS.requests} was made anew: 7 entries")
        assert mended["keys"]["level"] == OK
        assert int(admin.get(KEYS.requests_bytes)) == sum(
            len(fields.get(b"request", b"")) for _, fields in admin.xrange(KEYS.requests)
        )
        assert not list(admin.scan_iter("*:aside*"))
        # Found by its id, wherever it is now; taken over by nobody, it waits again.
        assert handles[5].cancel() is True
        assert queue.finish([answer(early)]) == [b"lost"]
        again = queue.lease()
        while more := queue.lease(block=False):
            again += more
        assert [entry.fields.get(b"id") for entry in again] == [b"r0", b"r1", b"r2", b"r3", b"r4", None]
        assert queue.finish([answer(entry) for entry in again[:5]]) == [b"ok"] * 5
        assert producer.submit(contexts(1)[0]).id
    assert len(leased) <= 3
    assert examine("--repair")["report"]["repaired"] == []


def test_keys_of_another_type_and_counters_that_cannot_be_are_named_and_mended(
    real_server: Any, examine: Examine, contexts: Any
) -> None:
    admin = real_server.admin
    with Producer(real_server.url) as producer:
        enqueue(producer, 3, contexts)
        for key in (KEYS.fallback, KEYS.shadow, KEYS.dead, KEYS.low_bytes):
            admin.hset(key, "a", "b")
        held = int(admin.get(KEYS.requests_bytes))
        admin.set(KEYS.requests_bytes, -5)
        admin.delete(KEYS.stats)
        admin.set(KEYS.stats, "words")
        named = [one["text"] for one in examine()["report"]["findings"] if one["check"] == "keys"]
        assert len(named) == 6
        assert len(examine("--repair")["report"]["repaired"]) == 6
        assert examine()["keys"]["level"] == OK
        assert int(admin.get(KEYS.requests_bytes)) == held
        assert admin.xlen(KEYS.requests) == 3
        assert admin.type(KEYS.fallback) == b"stream"


def test_a_hash_that_somebody_filled_with_names_is_named_and_its_totals_are_kept(
    real_server: Any, examine: Examine
) -> None:
    admin = real_server.admin
    admin.hset(KEYS.stats, mapping={"answered": 7, b"\xff": 1, **{f"answered:{n}": 1 for n in range(1000)}})
    found = examine()
    assert "1,002 names" in found["keys"]["text"]
    assert found["report"]["counters"] == {"answered": 7}
    examine("--repair")
    assert admin.hgetall(KEYS.stats) == {b"answered": b"7"}
    admin.hset(KEYS.stats, b"\xff", 1)
    assert examine()["report"]["counters"] == {"answered": 7}


def test_a_sender_that_was_removed_on_purpose_is_missed_until_the_operator_says_so(
    real_server: Any, examine: Examine
) -> None:
    assert examine()["sender"]["level"] == OK
    real_server.admin.set(KEYS.alerts_prefix + "looked_ms", int(time.time() * 1000) - 3_600_000)
    missed = examine()["sender"]
    assert missed["level"] == FAILURE
    assert "amn doctor --forget-sender" in missed["text"]
    said = examine("--forget-sender")
    assert "removed on purpose" in said["report"]["repaired"][0]
    assert said["sender"]["level"] == OK
    assert examine()["sender"]["level"] == OK  # once is enough
    real_server.admin.set(KEYS.alerts_prefix + "looked_ms", int(time.time() * 1000) - 600_000)
    assert examine()["sender"]["level"] == FAILURE  # one ran again, and is missed again


def test_the_judge_and_its_neighbours_are_alive_while_they_give_signs(real_server: Any) -> None:
    client = real_server.admin
    for name in ("judge", "sender", "jobs"):
        with pytest.raises(Unhealthy, match=f"no {name} of queue main has given a sign yet"):
            alive(real_server.admin, KEYS, name)
    now_ms = int(client.time()[0]) * 1000
    client.hset(KEYS.drift_prefix + "judge", "evaluated_at_ms", now_ms)
    client.set(KEYS.alerts_prefix + "looked_ms", now_ms - 600_000)
    client.sadd("rq:workers:amn-jobs", "rq:worker:one")
    client.hset("rq:worker:one", "birth", "now")
    assert [alive(real_server.admin, KEYS, name) for name in ("judge", "jobs")] == ["judge", "jobs"]
    with pytest.raises(Unhealthy, match=r"for 60\d s"):
        alive(real_server.admin, KEYS, "sender")


def test_a_worker_that_is_not_heard_is_named_before_it_is_forgotten(
    real_server: Any, examine: Examine
) -> None:
    long_ago_ms = int(time.time() * 1000) - 7_000
    silent = present(real_server.admin, "amn", seen_at_ms=long_ago_ms, progress_at_ms=long_ago_ms)
    found = examine()
    assert found["progress"]["level"] == FAILURE
    assert f"not heard: {silent} for 7 s" in found["progress"]["text"]
    assert found["report"]["backlogs"]["requests"]["workers"] == 0
