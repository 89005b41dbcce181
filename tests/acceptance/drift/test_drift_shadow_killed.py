"""The real shadow process, killed in the middle of its work: exact sums, one page, one end.

Its entries carry the times of half an hour some hours ago, which is how its clock is compressed: an
entry's id is the time of its event.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drift.world import ARTIFACTS, ID, KEYS, MODEL, ONE_IN, OOD, Increments, Sample, Scorer, Service, Windows
from producer.messages import Reply, Request
from producer.protocol import wire
from producer.sampling import RATE_MAX, sampled

pytestmark = pytest.mark.timeout(900)

#: Of the slices, by which the shadow worker knows them.
DOMAINS = {"ood": "anarchism", "id": "autism"}
PARTS, PART_MIN = 3, 10


@pytest.fixture
def service(_session_servers: Any, pools: dict[str, list[Increments]]) -> Iterator[Service]:
    """As everywhere, with a clock that ends now."""
    admin = _session_servers("valkey").client()
    admin.flushall()
    admin.set(KEYS.drift_prefix + "canary:turn", "1")  # the shadow process is to replay none here
    service = Service(admin, int(time.time()) // 300 * 5 - 60 * 31)
    service.live(24.2, pools["ood"], pools["id"], judged=False)
    service.live(1, pools["ood"], pools["id"])
    yield service
    service.receiver.stop()
    admin.close()


@pytest.fixture
def shadow(_session_servers: Any, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a shadow worker; ends what is left."""
    started: list[subprocess.Popen[bytes]] = []
    artifacts = os.environ.get("AMN_ARTIFACTS") or str(ARTIFACTS / "lvm")

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "workers", "shadow", "--artifacts", artifacts, "--lease-ms", "600"]
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = {**os.environ, **one_thread, "REDIS_URL": _session_servers("valkey").url}
        with (tmp_path / "shadow.log").open("ab") as log:
            started.append(
                subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


class Requests:
    """Sampled requests of a model that repeats the last vector, and what they must add up to."""

    def __init__(self, sample: Sample, scored: Scorer) -> None:
        self.windows = {name: sample.windows(name) for name in DOMAINS}
        self.scores = {
            name: scored(windows, name, windows.contexts[:, -1]) for name, windows in self.windows.items()
        }
        places = (f"document#{i}" for i in range(100_000))
        self._keys = iter([key for key in places if sampled(key, RATE_MAX)])
        self._draw = random.Random(3)

    def append(self, service: Service, minutes: int) -> dict[int, Counter[str]]:
        """Predictions and truths of the next minutes into the shadow stream; their sums by minute."""
        expected: dict[int, Counter[str]] = {}
        for minute in range(service.minute, service.minute + minutes):
            sums = expected.setdefault(minute, Counter())
            drawn = [(name, count) for name, count in (("ood", OOD), ("id", ID)) for _ in range(count)]
            with service.admin.pipeline(transaction=False) as pipe:
                for i, (name, _) in enumerate(drawn):
                    at = self._draw.randrange(len(self.scores[name]))
                    for kind, fields in entries(next(self._keys), name, self.windows[name], at):
                        entry_id = f"{minute * 60_000 + 1000 * i}-{int(kind == 'truth')}"
                        pipe.xadd(KEYS.shadow, {"kind": kind, **fields}, id=entry_id)
                    for field, amount in self.scores[name][at]:
                        sums[field] += amount
                pipe.execute()
        service.minute += minutes
        return expected


def entries(key: str, name: str, windows: Windows, at: int) -> list[tuple[str, dict[str, Any]]]:
    """What an AMN worker leaves of one sampled request, and of the one that tells its truth."""
    context = np.ascontiguousarray(windows.contexts[at])
    request_id = key.replace("#", ".")
    request = Request(id=request_id, reply_to="client", context=context, domain=DOMAINS[name])
    reply = Reply(id=request_id, vector=context[-1], confidence=0.5, margin=0.1, model=MODEL)
    prediction = {"key": key, "one_in": ONE_IN, "request": wire.encode_request(request)}
    prediction["answer"] = wire.encode_reply(reply)
    return [
        ("prediction", prediction),
        ("truth", {"key": key, "vector": wire.encode_vector(windows.truths[at])}),
    ]


def stored(service: Service, minute: int) -> dict[str, int]:
    """A minute's sums, but for what the fallback says, whose last bits depend on its batch."""
    found = service.admin.hgetall(f"{KEYS.drift_minute_prefix}{minute}")
    sums = {name.decode(): int(amount) for name, amount in found.items()}
    return {name: n for name, n in sums.items() if "|fallback." not in name and "|model|" not in name}


def scored_pairs(service: Service) -> int:
    return int(service.admin.hget(KEYS.stats, "shadow:scored") or 0)


def wait(process: subprocess.Popen[bytes], true: Callable[[], bool], timeout_s: float = 120) -> None:
    until_s = time.monotonic() + timeout_s
    while not true():
        assert process.poll() is None
        assert time.monotonic() < until_s
        hurry(process)
        time.sleep(0.01)


def hurry(process: subprocess.Popen[bytes]) -> None:
    """A shadow worker runs only when nobody else wants the core (Linux): a busy machine is no test of it."""
    if hasattr(os, "SCHED_OTHER"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            for thread in os.listdir(f"/proc/{process.pid}/task"):
                os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))


@pytest.mark.slow
def test_a_killed_shadow_worker_counts_nothing_twice_and_its_incident_is_told_once(
    service: Service,
    sample: Sample,
    scored: Scorer,
    pools: dict[str, list[Increments]],
    shadow: Callable[[], subprocess.Popen[bytes]],
) -> None:
    """A degraded model for half an hour; the worker that measures it dies three times meanwhile."""
    requests, expected = Requests(sample, scored), {}
    service.receiver.answers = [500, 429, 503]
    process = shadow()
    for _ in range(PARTS):
        before = scored_pairs(service)
        expected |= requests.append(service, PART_MIN)
        wait(process, lambda: scored_pairs(service) > before + 40)  # noqa: B023 (it is called here and now)
        process.kill()
        process.wait()
        assert service.admin.xlen(KEYS.shadow) > 0  # it died in the middle of its work
        process = shadow()
        wait(process, lambda: service.admin.xlen(KEYS.shadow) == 0)
        for minute, sums in expected.items():
            assert stored(service, minute) == dict(sums)
        service.look()
    process.terminate()
    process.wait()
    assert scored_pairs(service) == PARTS * PART_MIN * (OOD + ID)
    service.live(0.5, pools["ood"], pools["id"])
    assert service.begun == [("level", "")]
    service.live(3, pools["ood"], pools["id"])
    assert service.ended == [("level", "")]
    assert service.begun == [("level", "")]
    assert service.receiver.refused == 3
    assert service.receiver.pages() == [("trigger", "level"), ("resolve", "level")]
