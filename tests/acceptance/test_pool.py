"""Worker processes: kept alive, drained, refused when what they would serve does not hold."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from waiting import wait_until

from producer import Producer, ProducerSettings
from workers.errors import NotReady
from workers.pool.pool import Pool
from workers.pool.settings import PoolSettings

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "artifacts" / "lvm"
LEASE_MS = 600


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def settings(url: str, **changes) -> PoolSettings:
    return PoolSettings(url=url, artifacts=ARTIFACTS, lease_ms=LEASE_MS, **changes)


@pytest.fixture(scope="module")
def contexts() -> np.ndarray:
    vectors = np.load(ROOT / "artifacts" / "sample" / "sequences.npz")["vectors"].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.stack([vectors[i : i + 5] for i in range(200)])


def test_a_killed_worker_is_replaced_and_every_request_is_answered_once(make_server, contexts):
    url = make_server().url
    pool = Pool({"amn": 2, "fallback": 1}, settings(url))
    pool.start()
    try:
        pool.wait_ready()
        pool.watch()
        with Producer(settings=ProducerSettings(url=url)) as producer:
            handles, batches = [], []
            for turn in range(20):
                handles += producer.submit_many(list(contexts), block=True)
                batches += [producer.submit_batch(contexts[:size], block=True) for size in (1, 40, 200)]
                if turn == 8:
                    os.kill(pool.pids()["amn"][0], signal.SIGKILL)
            replies = [handle.result(30_000) for handle in handles]
            answers = [handle.result(30_000) for handle in batches]
            assert producer.stray_replies == 0
        assert len({reply.id for reply in (*replies, *answers)}) == len(handles) + len(batches) == 4060
        assert [len(answer) for answer in answers] == [1, 40, 200] * 20
        wait_until(lambda: pool.restarts == 1 and len(pool.pids()["amn"]) == 2)
    finally:
        pool.drain()
    assert pool.pids() == {"amn": [], "fallback": []}


def test_a_model_that_was_tampered_with_is_not_served(real_server, tmp_path, capfd):
    artifacts = tmp_path / "lvm"
    shutil.copytree(ARTIFACTS, artifacts, symlinks=True)
    weights = artifacts / "production_model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    pool = Pool({"amn": 1}, PoolSettings(url=real_server.url, artifacts=artifacts))
    pool.start()
    try:
        with pytest.raises(NotReady, match="amn ended with code 1"):
            pool.wait_ready()
    finally:
        pool.drain()
    assert "sha256" in capfd.readouterr().err


def test_without_a_server_a_worker_says_so_and_ends(tmp_path):
    command = [sys.executable, "-m", "workers", "amn", "--artifacts", str(ARTIFACTS)]
    url = f"unix://{tmp_path}/nothing"
    ended = subprocess.run(
        [*command, "--url", url], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert ended.returncode == 1
    assert f"no usable server at {url}" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_pools_worker_waits_for_a_server_that_comes_back(make_server, contexts):
    server = make_server(arguments=("--appendonly", "yes", "--appendfsync", "always"))
    pool = Pool({"amn": 1}, settings(server.url))
    with Producer(settings=ProducerSettings(url=server.url)) as producer:
        handle = producer.submit(contexts[0], provisional=True)
        server.kill()
        pool.start()
        try:
            pool.wait_ready()
            server.start()
            assert handle.first(20_000).served_by == "amn"
            assert pool.restarts == 0
        finally:
            pool.drain()


def test_workers_whose_pool_was_killed_stop_by_themselves(make_server):
    url = make_server().url
    script = f"""
import pathlib, time
from workers.pool.pool import Pool
from workers.pool.settings import PoolSettings
pool = Pool({{"amn": 1}}, PoolSettings(url={url!r}, artifacts=pathlib.Path({str(ARTIFACTS)!r}), lease_ms=600))
pool.start()
pool.wait_ready()
print(pool.pids()["amn"][0], flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert alive(worker)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not alive(worker))
