"""Requests that end or stop the process of whoever works on them: who goes with them, and who does not."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deadly import DeadlyPoolSettings
from waiting import wait_until

from producer import Options, Producer, ProducerSettings
from producer.errors import DeadLettered
from producer.keys import GROUP, Keys
from workers.pool.pool import Pool

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "artifacts" / "lvm"
KEYS = Keys()
GOOD, RESTARTS_MAX = 63, 5


@pytest.fixture(scope="module")
def contexts() -> np.ndarray:
    vectors = np.load(ROOT / "artifacts" / "sample" / "sequences.npz")["vectors"].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.stack([vectors[i : i + 5] for i in range(GOOD + 1)])


@contextmanager
def pool(url: str, counts: dict[str, int]) -> Iterator[Pool]:
    """Workers that die of some requests, looked after."""
    made = Pool(counts, DeadlyPoolSettings(url=url, artifacts=ARTIFACTS, lease_ms=600, sample_rate=0))
    made.start()
    try:
        made.wait_ready()
        made.watch()
        yield made
    finally:
        made.drain()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("deed", ["hang", "held"])  # segv is below
def test_a_request_that_kills_or_stops_its_worker_dies_alone(
    deed: str, make_server: Any, contexts: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMN_STALL_MS", "2000")
    server = make_server()
    admin = server.client()
    names = [f"good-{n}" for n in range(GOOD)]
    names.insert(40, f"{deed}-1")
    with (
        pool(server.url, {"amn": 1, "fallback": 1}) as workers,
        Producer(settings=ProducerSettings(url=server.url)) as producer,
    ):
        options = [Options(request_id=name, lane="general") for name in names]
        handles = producer.submit_many(list(contexts), options=options)
        culprit = handles.pop(40)
        assert {handle.result(180_000).id for handle in handles} == set(names) - {culprit.id}
        with pytest.raises(DeadLettered, match="worker_died"):
            culprit.result(180_000)
        assert 0 < workers.died["amn"] <= RESTARTS_MAX
        wait_until(lambda: int(admin.hget(KEYS.stats, "worker_died:amn") or 0) == workers.died["amn"])
        assert producer.predict(contexts[0]).served_by
    letters = [fields for _, fields in admin.xrange(KEYS.dead)]
    assert [(one[b"reason"], one[b"told"]) for one in letters] == [(b"worker_died", b"1")]
    assert admin.xlen(KEYS.requests) == 0


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_deadly_requests_and_a_deadly_batch_take_nobody_with_them(
    make_server: Any, contexts: np.ndarray
) -> None:
    server = make_server()
    names = [f"good-{n}" for n in range(GOOD - 1)]
    names[10:10], names[50:50] = ["segv-1"], ["segv-2"]
    with (
        pool(server.url, {"amn": 2, "fallback": 1}) as workers,
        Producer(settings=ProducerSettings(url=server.url)) as producer,
    ):
        options = [Options(request_id=name) for name in names]
        handles = producer.submit_many(list(contexts), options=options)
        batches = [producer.submit_batch(contexts[:9], request_id=name) for name in ("segv-b", "good-b")]
        ends: Counter[str] = Counter()
        for handle in (*handles, *batches):
            try:
                ends["good" if handle.result(200_000).id.startswith("good") else "?"] += 1
            except DeadLettered:
                ends["dead" if handle.id.startswith("segv") else "innocent and dead"] += 1
        assert 0 < workers.died["amn"] <= 3 * RESTARTS_MAX
    assert ends == {"good": GOOD, "dead": 3}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_who_kills_the_fallback_has_its_amn_answer(
    make_server: Any, contexts: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMN_TESTS_DEADLY", "fallback")
    server = make_server()
    with (
        pool(server.url, {"amn": 1, "fallback": 1}) as workers,
        Producer(settings=ProducerSettings(url=server.url)) as producer,
    ):
        # The AMN worker learns within a second that there is a fallback.
        wait_until(lambda: not producer.predict(contexts[9], lane="sci-fact").degraded, 60)
        options = [Options(request_id=name, lane="sci-fact") for name in ("good-1", "segv-1", "good-2")]
        good, culprit, other = producer.submit_many(list(contexts[:3]), options=options)
        assert (good.result(120_000).degraded, other.result(120_000).degraded) == ("", "")
        answer = culprit.result(120_000)
        assert (answer.served_by, answer.degraded) == ("amn", "fallback_failed")
        assert workers.died["amn"] == 0


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_worker_that_hangs_goes_when_its_pool_was_killed(make_server: Any, contexts: np.ndarray) -> None:
    server = make_server()
    script = f"""
import pathlib, sys, time
sys.path.insert(0, "tests")
from deadly import DeadlyPoolSettings
from workers.pool.pool import Pool
pool = Pool({{"amn": 1}}, DeadlyPoolSettings(url={server.url!r}, artifacts=pathlib.Path({str(ARTIFACTS)!r})))
pool.start()
pool.wait_ready()
print(pool.pids()["amn"][0], flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    admin = server.client()
    with Producer(settings=ProducerSettings(url=server.url)) as producer:
        producer.submit(contexts[0], request_id="hang-1")
        wait_until(lambda: admin.xpending(KEYS.requests, GROUP)["pending"] == 1)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        # Twenty seconds end any worker that hangs; an orphan has half of that.
        wait_until(lambda: not Path(f"/proc/{worker}").exists() or _is_zombie(worker), 18)


def _is_zombie(pid: int) -> bool:
    """Ended, and nobody has asked how: in a container without an init process."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
