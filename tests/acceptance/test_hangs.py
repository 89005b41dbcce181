"""Processes that live and do not get on: noticed, shown, ended and started again, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from waiting import wait_until

from ops.health import beside, workers
from ops.local.beside import Beside
from producer import Producer, ProducerSettings
from producer.keys import Keys
from workers.pool.pool import Pool
from workers.pool.settings import PoolSettings

ROOT = Path(__file__).resolve().parents[2]
KEYS = Keys()
SIDES = {
    "judge": ["drift", "judge"],
    "sender": ["alerts", "run"],
    "jobs worker": ["jobs", "worker"],
    "metrics": ["metrics", "--port", "0"],
    "dashboard": ["dashboard", "--port", "0"],
}


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that end after three seconds without a sign, and not after a minute."""
    monkeypatch.setenv("AMN_STALL_MS", "1500")
    monkeypatch.setenv("AMN_ALERTS_WEBHOOK_URL", "http://127.0.0.1:1/")
    monkeypatch.setenv("AMN_ALERTS_WEBHOOK_KEY", "k" * 32)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_stopped_worker_of_any_kind_is_shown_and_replaced_and_its_work_is_done(
    make_server: Any, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMN_STALL_MS", "3000")  # a busy machine looks at what is shown late
    server = make_server()
    client: redis.Redis = server.client()
    context = np.load(ROOT / "artifacts" / "sample" / "sequences.npz")["vectors"][:5].astype("f4")
    kinds = ("amn", "fallback", "shadow")
    settings = PoolSettings(url=server.url, artifacts=ROOT / "artifacts" / "lvm", lease_ms=3000)
    pool = Pool(dict.fromkeys(kinds, 1), settings)

    def noted() -> set[str]:
        return {one.kind for one in beside.read(client, KEYS, 0, jobs=False).failures}

    def silent(yes: bool = True) -> set[str]:
        seconds, micros = client.time()
        found = workers.read(client, KEYS, seconds * 1000 + micros // 1000)
        return {one.kind for one in found if one.silent == yes}

    pool.start()
    try:
        pool.wait_ready()
        pool.watch()
        with Producer(settings=ProducerSettings(url=server.url)) as producer:
            producer.predict(context, normalize=True)
            # On a busy machine a worker in the idle class gives its signs late.
            wait_until(lambda: silent(False) == set(kinds))
            before = {kind: pids[0] for kind, pids in pool.pids().items()}
            for pid in before.values():
                os.kill(pid, signal.SIGSTOP)
            handle = producer.submit(context, normalize=True)
            shown: tuple[set[str], set[str]] = set(), set()

            def all_shown() -> bool:
                for found, kinds_now in zip(shown, (silent(), noted()), strict=True):
                    found |= kinds_now
                return shown == (set(kinds), set(kinds))

            # While their presence is there, and then by their pool until they are replaced.
            wait_until(all_shown, 20)
            assert handle.result(60_000).served_by  # nobody sends a signal: the pool finds out by itself
        wait_until(lambda: not noted() and not silent())
        assert all(pool.pids()[kind] != [pid] for kind, pid in before.items())
        assert pool.died == dict.fromkeys(kinds, 1)
    finally:
        pool.drain()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("deed", ["spin", "held"])
def test_every_process_beside_the_workers_that_hangs_ends_itself(
    deed: str, make_server: Any, tmp_path: Path, hasty: None
) -> None:
    """In a container nobody else would end it: a restart policy acts on what ended."""
    server, hang = make_server(), tmp_path / "hang"
    environment = os.environ | {"REDIS_URL": server.url, "PYTHONPATH": str(ROOT)}
    started = {}
    for name, words in SIDES.items():
        command = [sys.executable, str(ROOT / "tests" / "hanging.py"), str(hang), deed, *words]
        with (tmp_path / name).open("wb") as log:
            started[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=log)
    try:
        if deed == "spin":  # the others hang at their first step
            time.sleep(12)
            assert {one.poll() for one in started.values()} == {None}  # idle, they go on for longer than that
        hang.touch()
        assert {name: one.wait(60) for name, one in started.items()} == dict.fromkeys(SIDES, 1)
    finally:
        for one in started.values():
            one.kill()
            one.wait()
    for name in SIDES:
        log_text = (tmp_path / name).read_text()
        assert "Timeout (0:00:04" in log_text, name  # it says where it hung
        assert "hanging.py" in log_text


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_stopped_process_beside_the_workers_is_killed_and_started_again(
    make_server: Any, tmp_path: Path, hasty: None
) -> None:
    server = make_server()
    sides = [Beside(name, words, server.url, tmp_path / "log") for name, words in SIDES.items()]
    try:
        assert all(one.child.is_ready(30) for one in sides)
        before = [one.child.pid for one in sides]
        for pid in before:
            os.kill(pid, signal.SIGSTOP)
        said: list[str] = []

        def all_replaced() -> bool:
            said.extend(filter(None, [one.poll() for one in sides]))
            return all(
                one.child.pid != pid and one.child.is_ready() for one, pid in zip(sides, before, strict=True)
            )

        wait_until(all_replaced)
        assert sorted(said) == sorted(f"{name} gave no sign for 4 s, and was killed" for name in SIDES)
    finally:
        for one in sides:
            one.stop()
