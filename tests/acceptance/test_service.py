"""`amn up` and what is used beside it: predict, jobs, doctor."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import redis
from command import Amn, address, artifacts
from numpy.typing import NDArray
from waiting import wait_until

from producer import Producer

pytestmark = pytest.mark.timeout(180)

Contexts = NDArray[np.float32]


def test_up_serves_beside_modules_of_the_user_in_any_folder_and_leaves_no_process(tmp_path: Path) -> None:
    folder = tmp_path / "it's [1] a%20b"
    for name in ("workers.py", "queue.py", "redis.py", "amn/__init__.py", "ops/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"open({str(tmp_path / 'hijacked')!r}, 'a').write(__file__)")
    amn = Amn(folder)
    process = amn.start("up", "--workers", 1)
    log = folder / "up.log"
    wait_until(lambda: "Ctrl-C drains" in log.read_text() or process.poll() is not None)
    assert "export REDIS_URL=" in log.read_text()
    assert "the jobs worker, the judge, the page, on queue main" in log.read_text()
    assert amn("doctor", "--alive", "amn").code == 0
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0
    assert "drain" in log.read_text()
    amn.leaves_nothing()
    assert not (folder / "var" / "amn" / "service.json").exists()
    assert not (tmp_path / "hijacked").exists()


def test_a_server_that_dies_is_started_again_and_a_waiting_client_is_served(
    tmp_path: Path, real_contexts: Contexts
) -> None:
    amn = Amn(tmp_path)
    process = amn.start("up", "--workers", 1)
    log = tmp_path / "up.log"
    wait_until(lambda: "Ctrl-C drains" in log.read_text() or process.poll() is not None)
    url = address(tmp_path)
    with redis.Redis.from_url(url) as client, Producer(url) as producer:
        producer.predict(real_contexts[0])
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
        producer.predict(real_contexts[1], block=True, deadline_ms=60_000)
    wait_until(lambda: "was started again" in log.read_text())
    wait_until(lambda: amn("doctor", "--alive", "amn").code == 0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0
    amn.leaves_nothing()


def test_the_page_of_a_service_answers_where_up_says_and_stays_small(service: Amn) -> None:
    [address] = re.findall(r"the page: (http://127.0.0.1:\d+)", (service.folder / "up.log").read_text())

    def kinds() -> set[str]:
        with urllib.request.urlopen(f"{address}/api/snapshot", timeout=20) as answer:
            return {one["kind"] for one in json.load(answer)["workers"]}

    # A worker in the idle class may be late with its sign on a busy machine.
    wait_until(lambda: kinds() == {"amn", "fallback", "shadow"})
    # Only those of the service: another process may end between the list and the look at it.
    own = [Path("/proc", str(pid)) for pid in service.processes()]
    [process] = [one for one in own if b"dashboard" in (one / "cmdline").read_bytes()]
    [resident] = re.findall(r"VmRSS:\s*(\d+) kB", (process / "status").read_text())
    assert int(resident) < 100 * 1024
    maps = (process / "maps").read_text()
    assert "torch" not in maps
    assert "matplotlib" not in maps


def test_the_doctor_of_a_dead_service_asks_no_other_server(tmp_path: Path) -> None:
    amn = Amn(tmp_path)
    process = amn.start("up", "--workers", 1)
    log = tmp_path / "up.log"
    wait_until(lambda: "Ctrl-C drains" in log.read_text() or process.poll() is not None)
    process.kill()
    process.wait()
    amn.leaves_nothing()
    for words in (["doctor"], ["alerts", "list"], ["dlq", "list"], ["drift", "status"]):
        ended = amn(*words)
        assert ended.code == 1
        assert "var/amn/redis.sock" in ended.err
        assert "var/amn/service.json" in ended.err


def test_a_second_up_in_the_same_folder_is_refused_in_one_line(service: Amn) -> None:
    ended = service("up")
    assert ended.code == 1
    assert ended.err.startswith("amn: the data folder")
    assert ended.err.count("\n") == 1


def test_a_file_has_no_part_in_the_objectives_of_interactive_traffic(
    service: Amn, tmp_path: Path, real_contexts: Contexts
) -> None:
    def counters() -> dict[str, int]:
        ended = service("doctor", "--json")
        counted: dict[str, int] = json.loads(ended.out)["counters"]
        return counted

    source, looks = tmp_path / "in.npy", [counters()]
    np.save(source, real_contexts)

    def quiet() -> bool:
        looks.append(counters())
        return looks[-1] == looks[-2]

    wait_until(quiet)  # what earlier tests left in the queue of this service counts for nobody here
    before = looks[-1]
    assert service("predict", source, "--out", tmp_path / "out").code == 0
    after = counters()
    grown = {name: count - before.get(name, 0) for name, count in after.items()}
    assert grown["bulk"] == grown["accepted:low"] > 0
    assert grown.get("bulk:escalated", 0) == grown.get("escalated", 0)
    for name in ("slow", "timed", "sampleable", "shadowed", "failed", "dead"):
        assert grown.get(name, 0) == 0, name


def test_a_healthy_service_satisfies_the_doctor(service: Amn) -> None:
    ended = service("doctor", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["healthy"]
    assert {worker["kind"] for worker in found["workers"]} == {"amn", "fallback", "shadow"}
    assert found["server"]["maxmemory_policy"] == "noeviction"
    assert found["server"]["append_only"]
    assert found["artifacts"]["model"].startswith("amn@")
    assert found["root"] == str(Path(artifacts()).resolve())
    assert {Path(worker["artifacts"]) for worker in found["workers"]} == {Path(found["root"])}
    assert found["beside"]["jobs_workers"] == 1
    levels = {one["check"]: one["level"] for one in found["findings"]}
    assert levels["judge"] != "failure"
    assert levels["failures"] == "ok"
    assert service("doctor", "--alive", "fallback").code == 0


def test_the_doctor_fails_for_a_queue_that_nobody_serves(service: Amn) -> None:
    ended = service("doctor", "--queue", "other")
    assert ended.code == 1
    assert "amn workers: none alive" in ended.err
    assert service("doctor", "--queue", "other", "--alive", "amn").code == 1


def test_a_run_can_use_the_workers_that_are_up(service: Amn) -> None:
    url = address(service.folder)
    ended = service("run", "--requests", 300, "--rate", 0, "--workers", 0, "--json", REDIS_URL=url)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["answered"] == 300


def test_the_doctor_shows_the_shadows_delta(service: Amn) -> None:
    url = address(service.folder)
    assert service("run", "--requests", 2000, "--rate", 0, "--workers", 0, REDIS_URL=url).code == 0
    deadline_s = time.monotonic() + 30
    while True:
        drift = json.loads(service("doctor", "--json").out)["drift"]
        if any(model["ood_delta"] for model in drift.values()):
            break
        assert time.monotonic() < deadline_s, drift
    assert "OOD delta" in service("doctor").out
