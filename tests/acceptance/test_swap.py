"""New models and new processes under load: nothing is lost, and every answer says who made it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import structlog
from command import ROOT, Amn, address
from recalibrated import recalibrated
from waiting import wait_until

from amn.bank.build import BankSettings, build_bank
from amn.bank.settings import IndexSettings
from amn.evaluation import promotion
from producer import Producer, ProducerSettings
from producer.keys import GROUP, Keys
from producer.messages import DEFAULT_ENCODER, Reply
from workers.pool.pool import Pool
from workers.pool.served import identity
from workers.pool.settings import PoolSettings

pytestmark = pytest.mark.timeout(180)
ARTIFACTS = ROOT / "artifacts" / "lvm"
LEASE_MS = 600


class Load:
    """Requests without a pause from another thread, until it is left."""

    def __init__(self, url: str, contexts: np.ndarray) -> None:
        self.replies: list[Reply] = []
        self.submitted = 0
        self.strays = 0
        self.errors: list[Exception] = []
        self._url, self._contexts = url, contexts
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        with Producer(settings=ProducerSettings(url=self._url)) as producer:
            while not self._stop.is_set():
                handles = producer.submit_many(list(self._contexts), block=True)
                self.submitted += len(handles)
                for handle in handles:
                    try:
                        self.replies.append(handle.result(30_000))
                    except Exception as error:
                        self.errors.append(error)
            self.strays = producer.stray_replies

    def wait_for_more(self) -> None:
        seen = self.submitted
        wait_until(lambda: self.submitted > seen + 2 * len(self._contexts) or not self._thread.is_alive())

    def lost_nothing(self) -> None:
        assert not self.errors
        assert len({reply.id for reply in self.replies}) == len(self.replies) == self.submitted > 0
        assert self.strays == 0


@pytest.fixture
def pools() -> Iterator[Callable[..., Pool]]:
    started: list[Pool] = []

    def start(url: str, artifacts: Path, **counts: int) -> Pool:
        pool = Pool(counts, PoolSettings(url=url, artifacts=artifacts, lease_ms=LEASE_MS))
        started.append(pool)
        pool.start()
        pool.wait_ready()
        pool.watch()
        return pool

    yield start
    for pool in started:
        pool.drain()


@pytest.mark.slow
def test_a_promotion_under_load_changes_the_model_of_the_answers_and_loses_none(
    make_server: Any, artifacts: Path, twin: Path, pools: Any, real_contexts: np.ndarray
) -> None:
    url = make_server().url
    pool = pools(url, artifacts, amn=2, fallback=1)
    before = identity(artifacts / "production_model")
    calibration = recalibrated(twin.parent / "gate_twin", amn=identity(twin))
    with Load(url, real_contexts[:100]) as load:
        load.wait_for_more()
        promote = [str(Path(sys.executable).with_name("amn")), "promote", str(twin), "--root", str(artifacts)]
        promote += ["--calibration", str(calibration)]
        ended = subprocess.run(
            [*promote, "--no-latency"], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert ended.returncode == 0, ended.stderr
        # The fallback worker too: it blends by the calibration.
        wait_until(lambda: pool.swaps == 3 and pool.settled)
        settled_at = load.submitted
        load.wait_for_more()
    load.lost_nothing()
    served = [reply.model for reply in load.replies if reply.served_by == "amn"]
    assert set(served) == {before, identity(twin)}
    assert {r.model for r in load.replies[settled_at + 100 :] if r.served_by == "amn"} == {identity(twin)}
    assert pool.restarts == 0


def test_a_model_without_a_calibration_of_its_own_is_refused_and_the_old_one_serves(
    make_server: Any, artifacts: Path, twin: Path, pools: Any, real_contexts: np.ndarray
) -> None:
    url = make_server().url
    pool = pools(url, artifacts, amn=1)
    good = identity(artifacts / "production_model")
    with structlog.testing.capture_logs() as logs:
        promotion.move(artifacts / "production_model", twin)  # `promote` would have refused it
        wait_until(lambda: any(line["event"] == "swap_refused" for line in logs))
        with Producer(settings=ProducerSettings(url=url)) as producer:
            assert producer.predict(real_contexts[0]).model == good
        # With a calibration that was fitted for it, it is taken at the next look.
        recalibrated(twin.parent / "gate_twin", amn=identity(twin))
        promotion.move(artifacts / "gate_calibration", twin.parent / "gate_twin")
        wait_until(lambda: pool.swaps == 1 and pool.settled)
        with Producer(settings=ProducerSettings(url=url)) as producer:
            assert producer.predict(real_contexts[0]).model == identity(twin)


def test_a_model_that_does_not_hold_leaves_the_old_one_serving_also_after_a_kill(
    make_server: Any, artifacts: Path, twin: Path, pools: Any, real_contexts: np.ndarray
) -> None:
    weights = twin / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    url = make_server().url
    pool = pools(url, artifacts, amn=1)
    good = identity(artifacts / "production_model")
    earlier = (artifacts / "production_model").resolve()
    with structlog.testing.capture_logs() as logs:
        promotion.move(artifacts / "production_model", twin)  # `promote` would have refused it
        wait_until(lambda: any(line["event"] == "swap_refused" for line in logs))
        (refused,) = [line for line in logs if line["event"] == "swap_refused"][:1]
        assert (refused["log_level"], refused["kind"]) == ("error", "amn")
        (old,) = set(pool.pids()["amn"]) & {refused["serving"]}
        os.kill(old, signal.SIGKILL)
        with Producer(settings=ProducerSettings(url=url)) as producer:
            replies = [producer.submit(context).result(60_000) for context in real_contexts[:3]]
        assert {reply.model for reply in replies} == {good}
        promotion.move(artifacts / "production_model", earlier)
        wait_until(lambda: pool.settled)


@pytest.mark.slow
def test_hup_restarts_every_worker_of_a_running_service_and_loses_nothing(
    tmp_path: Path, real_contexts: np.ndarray
) -> None:
    amn = Amn(tmp_path)
    process = amn.start("up", "--workers", 1)
    log = tmp_path / "up.log"
    wait_until(lambda: "Ctrl-C drains" in log.read_text() or process.poll() is not None)
    url = address(tmp_path)
    with redis.Redis.from_url(url) as client:

        def workers() -> set[bytes]:
            return set(client.keys(Keys().workers_prefix.replace("{", "\\{") + "*"))

        wait_until(lambda: len(workers()) == 3)
        before = workers()
        with Load(url, real_contexts[:50]) as load:
            load.wait_for_more()
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: len(workers()) == 3 and not workers() & before)
            load.wait_for_more()
        load.lost_nothing()
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0
    amn.leaves_nothing()


def test_a_second_sigterm_leaves_at_once_and_the_lease_brings_the_work_to_another(
    make_server: Any, pools: Any, artifacts: Path, real_contexts: np.ndarray
) -> None:
    server = make_server()
    command = [sys.executable, "-m", "workers", "amn", "--artifacts", str(artifacts)]
    command += ["--url", server.url, "--lease-ms", str(LEASE_MS)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"ready\n"
    with Producer(settings=ProducerSettings(url=server.url)) as producer, server.client() as admin:
        handles = [h for _ in range(10) for h in producer.submit_many(list(real_contexts))]
        # Amid a backlog the worker holds a batch, and now it cannot end it.
        server.signal(signal.SIGSTOP)
        worker.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(0.5)  # the first one waits for the batch
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(3) == 128 + signal.SIGTERM
        worker.stdout.close()
        server.signal(signal.SIGCONT)
        assert admin.xpending(Keys().requests, GROUP)["pending"] > 0
        pools(server.url, artifacts, amn=1, fallback=1)
        assert len({handle.result(60_000).id for handle in handles}) == len(handles)
        assert admin.xpending(Keys().requests, GROUP)["pending"] == 0
        assert producer.stray_replies == 0


def test_an_indexed_bank_is_taken_up_under_load_without_a_restart_or_a_loss(
    make_server: Any, artifacts: Path, pools: Any, real_contexts: np.ndarray, tmp_path: Path
) -> None:
    with np.load(ROOT / "artifacts" / "sample" / "sequences.npz") as sample:
        vectors = sample["vectors"]
    settings = BankSettings(
        encoder_id=DEFAULT_ENCODER, source="a test", indexed=True, index=IndexSettings(cells=32)
    )
    indexed = build_bank(vectors, tmp_path / "banks" / "bank_indexed", settings)
    before = identity(artifacts / "reference_bank")
    server = make_server()
    pool = pools(server.url, artifacts, amn=2)
    with Load(server.url, real_contexts[:100]) as load:
        load.wait_for_more()
        (tmp_path / "next").symlink_to(tmp_path / "banks" / "bank_indexed")
        os.replace(tmp_path / "next", artifacts / "reference_bank")
        wait_until(lambda: pool.swaps == 2 and pool.settled)
        settled_at = load.submitted
        load.wait_for_more()
    load.lost_nothing()
    assert {r.bank for r in load.replies if r.bank} == {before, indexed.bank_id}
    assert {r.bank for r in load.replies[settled_at + 100 :] if r.bank} == {indexed.bank_id}
    scored = [r for r in load.replies if r.bank == indexed.bank_id]
    # The sample's own texts are in this bank, so that none is far from all of it.
    assert min(r.confidence for r in scored) > 0.3
    assert all(r.margin >= 0 for r in scored)
    assert pool.restarts == 0
