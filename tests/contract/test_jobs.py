"""Whoever can write to the queue of the jobs picks one of our functions, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rq.command import send_shutdown_command

from ops.errors import JobRefused
from ops.jobs import JOBS, cancel, listed, rq_connection, submit_predict
from ops.predict.settings import PredictSettings
from producer.settings import ProducerSettings

QUEUE = f"rq:queue:{JOBS}"
GOOD = dataclasses.asdict(PredictSettings(sources=["/nowhere/in.npy"], out="/nowhere/out")) | {
    "queue": "main"
}


@pytest.fixture
def worker(real_server: Any, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`amn jobs worker`, as `amn up` starts it."""
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ops.cli", "jobs", "worker", "--url", real_server.url],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    yield process
    process.terminate()
    process.wait(30)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """What an attacker's code would leave; the module is one that the worker could import."""
    proof = tmp_path / "proof"
    (tmp_path / "intruder.py").write_text(
        f"def leave(*_, **__):\n    open({str(proof)!r}, 'a').write('here')\n"
        "class Job:\n    @staticmethod\n    def leave(*_, **__):\n        leave()\n"
    )
    return proof


def put(server: Any, name: str, data: Any, **fields: Any) -> None:
    """A job as RQ stores it, written past RQ."""
    raw = data if isinstance(data, bytes) else zlib.compress(json.dumps(data).encode())
    stored = {"data": raw, "status": "queued", "origin": JOBS, "created_at": "2026-01-01T00:00:00.000000Z"}
    server.admin.hset(f"rq:job:{name}", mapping=stored | fields)
    server.admin.rpush(QUEUE, name)


def wait(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def rows(server: Any) -> dict[str, dict[str, Any]]:
    connection = rq_connection(ProducerSettings(url=server.url))
    try:
        return {row["id"]: row for row in listed(connection)}
    finally:
        connection.close()


def ended(server: Any, name: str) -> dict[str, Any]:
    wait(lambda: rows(server).get(name, {"status": ""})["status"] in ("failed", "finished", "cancelled"))
    return rows(server)[name]


def test_no_function_but_ours_runs_whatever_a_job_says(
    real_server: Any, worker: subprocess.Popen[bytes], proof: Path
) -> None:
    shell = f"touch {proof}"
    calls = {
        "system": ["os.system", None, [shell], {}],
        "popen": ["subprocess.check_output", None, [["touch", str(proof)]], {}],
        "eval": ["eval", None, [f"open({str(proof)!r}, 'w')"], {}],
        "builtins": ["builtins.exec", None, [f"open({str(proof)!r}, 'w')"], {}],
        "module": ["intruder.leave", None, [], {}],
        "nested": ["intruder.Job.leave", None, [], {}],
        "ours": ["ops.jobs.work", None, [], {}],
        "through": ["ops.jobs.os.system", None, [shell], {}],
        "private": ["ops.jobs._row", None, [], {}],
        "longer": ["ops.jobs.predict.__globals__", None, [], {}],
        "spaced": ["ops.jobs.predict ", None, [], GOOD],
        "instance": ["system", "os", [shell], {}],
        "method": ["ops.jobs.predict", {"os": 1}, [], GOOD],
        "positional": ["ops.jobs.predict", None, [shell], GOOD],
        "listed": [["os.system"], None, [shell], {}],
        "nothing": [],
    }
    for name, call in calls.items():
        put(real_server, name, call)
    for name in calls:
        row = ended(real_server, name)
        assert (row["status"], row["error"].partition(":")[0]) == ("failed", "ops.errors.JobRefused"), row
    assert "os.system' is none of our functions" in rows(real_server)["system"]["error"]
    assert not proof.exists()
    assert worker.poll() is None


def test_callbacks_repeats_dependents_and_webhooks_of_a_job_have_no_effect(
    real_server: Any, worker: subprocess.Popen[bytes], proof: Path
) -> None:
    called: list[str] = []

    class Called(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            called.append(self.path)
            self.send_response(200)
            self.end_headers()

    listener = HTTPServer(("127.0.0.1", 0), Called)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    hook = {"url": f"http://127.0.0.1:{listener.server_port}/x", "job_status": "failed", "method": "GET"}
    fields = {
        **{f"{when}_callback_name": "intruder.leave" for when in ("success", "failure", "stopped")},
        "webhooks": json.dumps([hook]),
        "retries_left": 5,
        "repeats_left": 5,
        "repeat_intervals": "[0]",
        "rate_limit_key": "x",
        "rate_limit_concurrency": 1,
        "group_id": "g",
        "dependency_ids": '["other"]',
        "meta": json.dumps({"serializer": "pickle", "job_class": "intruder.Job"}),
        "serializer": "pickle",
        "job_class": "intruder.Job",
    }
    real_server.admin.sadd("rq:job:all:dependents", "other", b"\xff")
    put(real_server, "all", ["ops.jobs.predict", None, [], GOOD], **fields)
    row = ended(real_server, "all")
    assert (row["status"], row["error"].partition(":")[0]) == ("failed", "amn.errors.FileRefused")
    put(real_server, "after", ["os.system", None, [], {}])
    ended(real_server, "after")
    assert (called, proof.exists(), real_server.admin.llen(QUEUE)) == ([], False, 0)
    assert real_server.admin.smembers("rq:job:all:dependents") == {b"other", b"\xff"}
    listener.shutdown()
    listener.server_close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sources": ["../in.npy"]}, "sources is"),
        ({"sources": "/in.npy"}, "sources is"),
        ({"sources": []}, "no source is named"),
        ({"sources": ["/a.npy"] * 1001}, "sources is"),
        ({"out": "/tmp/a/../b"}, "out is"),
        ({"out": "out"}, "out is"),
        ({"out": "/tmp/a\x00"}, "out is"),
        ({"out": "/" + "a" * 5000}, "out is"),
        ({"out": "/tmp/\ud800"}, "out is"),
        ({"out": 5}, "out is 5"),
        ({"queue": "a b"}, "queue is"),
        ({"lane": "urgent"}, "lane 'urgent'"),
        ({"vector": "\x1b[2J"}, "vector is"),
        ({"carry": "title"}, "carry is"),
        ({"share": "all"}, "share is"),
        ({"share": 2.0}, "share is 2.0"),
        ({"restart": 1}, "restart is 1"),
        ({"shard": "3/2"}, "shard is '3/2'"),
        ({"failures_max": "many"}, "failures-max is 'many'"),
        ({"extra": 1}, "predict takes"),
    ],
)
def test_arguments_of_another_kind_are_refused_by_name(change: dict[str, Any], said: str) -> None:
    from ops import jobs

    jobs.check(GOOD)
    with pytest.raises(JobRefused, match=said):
        jobs.predict(None, **GOOD | change)  # type: ignore[arg-type]


def test_a_worker_that_was_killed_is_forgotten_by_the_next_one(real_server: Any) -> None:
    client, names = real_server.admin, ("rq:workers", f"rq:workers:{JOBS}")
    for name in names:
        client.sadd(name, "rq:worker:killed")
    command = [sys.executable, "-m", "ops.cli", "jobs", "worker", "--burst", "--url", real_server.url]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    assert [client.scard(name) for name in names] == [0, 0]


def test_what_is_no_job_at_all_stops_neither_the_worker_nor_the_listing(
    real_server: Any, worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    client, bomb = real_server.admin, zlib.compress(bytes(50_000_000))
    for entry in (b"\xff\xfe", "a/b", "../x", "x:y:z", "", "no-such-job", "string", "x" * 10_000):
        client.rpush(QUEUE, entry)
    client.set("rq:job:string", "no hash")
    put(real_server, "bomb", bomb)
    put(real_server, "deep", b"[" * 60_000)
    put(real_server, "digits", b'["ops.jobs.predict",null,[],' + b"9" * 20_000 + b"]")
    put(real_server, "pickled", b"cos\nsystem\n(S'true'\ntR.")
    odd = {
        "status": "no such",
        "timeout": "soon",
        "created_at": "\x00",
        "ttl": "x",
        "meta": "{",
        "origin": b"\xff",
    }
    put(real_server, "odd", ["os.system", None, [], {}], description="\x1b[2J\n[/x]", **odd)
    client.sadd("rq:workers", b"\xff")
    client.set("rq:suspended", 1)
    for name in ("wip", "finished", "failed"):
        client.zadd(f"rq:{name}:{JOBS}", {b"\xff": 1e12, "a/b:c": 1e12, "x:y:z": 1e12})
    for name in ("bomb", "deep", "digits", "pickled", "odd"):
        assert ended(real_server, name)["status"] == "failed"
    client.xadd("rq:results:odd", {"exc_string": b"%%", "return_value": b"[[[", "type": "x"})
    assert rows(real_server)["odd"]["description"] == "?[2J?[/x]"
    assert client.llen(f"{QUEUE}:intermediate") == 0
    assert worker.poll() is None
    assert "none of our functions" in (tmp_path / "worker.log").read_text()


def test_an_order_from_the_server_does_not_end_the_worker(
    real_server: Any, worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    wait(lambda: bool(real_server.admin.smembers("rq:workers")))
    [key] = real_server.admin.smembers("rq:workers")
    connection = rq_connection(ProducerSettings(url=real_server.url))
    send_shutdown_command(connection, key.decode().removeprefix("rq:worker:"))
    np.save(tmp_path / "in.npy", np.zeros((1, 5, 768), "f4"))
    settings = ProducerSettings(url=real_server.url)
    asked = PredictSettings(sources=[str(tmp_path / "in.npy")], out=str(tmp_path / "out"))
    job = submit_predict(settings, asked)
    wait(lambda: rows(real_server)[job]["status"] != "queued")
    assert worker.poll() is None
    connection.close()


def contexts_file(folder: Path) -> PredictSettings:
    np.save(folder / "in.npy", np.full((2, 5, 768), 768**-0.5, "f4"))
    return PredictSettings(sources=[str(folder / "in.npy")], out=str(folder / "out"))


def test_a_job_that_waits_is_cancelled_and_told_as_such(real_server: Any, tmp_path: Path) -> None:
    settings = ProducerSettings(url=real_server.url)
    job = submit_predict(settings, contexts_file(tmp_path))
    with closing(rq_connection(settings)) as connection:
        assert cancel(connection, job) == "cancelled"
        with pytest.raises(JobRefused, match=rf"no job '{job}' waits or runs: it is cancelled"):
            cancel(connection, job)
        with pytest.raises(JobRefused, match=r"no job 'none' waits or runs$"):
            cancel(connection, "none")
    assert rows(real_server)[job]["status"] == "cancelled"
    assert real_server.admin.ttl(f"rq:job:{job}") > 0
    assert real_server.admin.llen(QUEUE) == 0


def test_a_job_that_runs_ends_when_it_is_cancelled(
    real_server: Any, worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    settings = ProducerSettings(url=real_server.url)
    job = submit_predict(settings, contexts_file(tmp_path))  # nobody answers: it waits for AMN workers
    wait(lambda: rows(real_server)[job]["stalled_s"] > 0)
    with closing(rq_connection(settings)) as connection:
        assert "it ends within" in cancel(connection, job)
    row = ended(real_server, job)
    assert row["status"] == "cancelled"
    assert "cancelled; what is done stays" in row["error"]
    wait(lambda: real_server.admin.ttl(f"rq:job:{job}") > 0)
    wait(lambda: real_server.admin.zcard(f"rq:failed:{JOBS}") == 0)


def test_a_cancelled_job_is_never_told_as_failed(real_server: Any, tmp_path: Path) -> None:
    """Its worker fails it first, as RQ does, and ends it as cancelled after that."""
    settings = ProducerSettings(url=real_server.url)
    job = submit_predict(settings, contexts_file(tmp_path))
    real_server.admin.hset(f"rq:job:{job}", mapping={"status": "failed", "cancelled": "1"})
    assert rows(real_server)[job]["status"] == "cancelled"
    real_server.admin.hdel(f"rq:job:{job}", "cancelled")
    assert rows(real_server)[job]["status"] == "failed"


def test_a_job_whose_process_dies_begins_again_three_times_at_most(
    real_server: Any, worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    job = submit_predict(ProducerSettings(url=real_server.url), contexts_file(tmp_path))
    killed: list[int] = []

    def running() -> int:
        """The process of the job, once it waits for answers that nobody gives."""
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
        meta = json.loads(real_server.admin.hget(f"rq:job:{job}", "meta"))
        fresh = [int(pid) for pid in children if int(pid) not in killed]
        return fresh[0] if fresh and meta.get("begun") == len(killed) + 1 else 0

    for _ in range(4):
        wait(lambda: running() > 0)
        killed.append(running())
        os.kill(killed[-1], signal.SIGKILL)
    assert ended(real_server, job)["status"] == "failed"
    assert len(set(killed)) == 4
