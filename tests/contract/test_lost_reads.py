"""Answers to reads that never reach the worker: the work goes on in smaller steps, and none of it dies."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from rig import KEYS, answer
from servers import Server
from waiting import wait_until

from ops.health import FAILURE, OK, WARNING, process_checks, server, workers
from producer import Producer
from producer.messages import Reply, Request
from producer.protocol import wire
from producer.settings import ProducerSettings
from workers.engine.entry import Outcome
from workers.engine.keeper import Keeper
from workers.engine.loop import Loop
from workers.engine.microbatch import MicroBatch
from workers.engine.queue import LeasedQueue
from workers.settings import QueueSettings, WorkerSettings


class Answers:
    """Answers everything, and remembers how large the batches were."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def handle(self, batch: MicroBatch) -> list[Outcome]:
        self.sizes.append(len(batch))
        return [answer_of(batch, i) for i in range(len(batch))]


def answer_of(batch: MicroBatch, i: int) -> Outcome:
    if batch.requests[i].batched:
        return Outcome(entry=batch.entries[i], op="reply", counters="answered,answered:amn")
    return answer(batch.entries[i])


@contextmanager
def working(url: str, **limits: int) -> Iterator[tuple[Loop, Answers]]:
    """The real loop and its keeper, in threads."""
    limits = {"block_ms": 20, "lease_ms": 600, "batch_max": 64, **limits}
    settings = WorkerSettings(
        kind="amn", producer=ProducerSettings(url=url), queue=QueueSettings(**limits), sample_rate=0
    )
    handler = Answers()
    loop = Loop(LeasedQueue(settings, KEYS.requests, "amn-h-1-abc"), handler)
    keeper, thread = Keeper(loop, {}), threading.Thread(target=loop.run, daemon=True)
    keeper.start()
    thread.start()
    try:
        yield loop, handler
    finally:
        loop.stop()
        thread.join(20)
        keeper.stop()
        loop.queue.close()


def put(admin: Any, payloads: list[bytes]) -> None:
    with admin.pipeline() as pipe:
        for payload in payloads:
            pipe.xadd(KEYS.requests, {"request": payload})
        pipe.execute()


def singles(contexts: Any, count: int) -> list[bytes]:
    rows = contexts(count)
    return [
        wire.encode_request(Request(id=f"r{n}", reply_to="client", context=rows[n])) for n in range(count)
    ]


def finding(admin: Any) -> tuple[str, str]:
    about, now_ms = server.read(admin)
    return process_checks.reads(about, workers.read(admin, KEYS, now_ms))


@pytest.mark.parametrize("kind", ["valkey", pytest.param("redis", marks=pytest.mark.needs("redis-server"))])
def test_a_server_with_a_small_output_limit_is_worked_for_and_named(
    kind: str, make_server: Callable[..., Server], contexts: Any
) -> None:
    made = make_server(kind)
    admin = made.client()
    assert finding(admin)[0] == OK
    admin.config_set("client-output-buffer-limit", "normal 100000 0 0")  # six contexts
    assert finding(admin)[0] == WARNING
    put(admin, singles(contexts, 150))
    with working(made.url) as (loop, handler):
        wait_until(lambda: loop.finished == 150)
        assert loop.queue.sizes.lost >= 3
        assert max(handler.sizes) <= 8
        wait_until(lambda: finding(admin)[0] == FAILURE)
        assert "100,000 bytes" in finding(admin)[1]
    assert admin.xlen(KEYS.dead) == 0
    assert int(admin.hget(KEYS.stats, "answered")) == 150


def test_what_is_behind_an_entry_that_cannot_pass_is_served(
    make_server: Callable[..., Server], contexts: Any
) -> None:
    made = make_server()
    admin = made.client()
    many = Request(id="many", reply_to="client", context=np.stack(list(contexts(20))))
    first, *others = singles(contexts, 40)
    put(admin, [first, wire.encode_request(many), *others])
    admin.config_set("client-output-buffer-limit", "normal 200000 0 0")
    with working(made.url) as (loop, _):
        wait_until(lambda: loop.finished == 40)
        assert admin.xlen(KEYS.requests) == 1
        admin.config_set("client-output-buffer-limit", "normal 0 0 0")
        wait_until(lambda: loop.finished == 41)
    assert admin.xlen(KEYS.dead) == 0


class CutsLargeAnswers:
    """A link that resets the connection in the midst of each large piece, while `cutting` is set.

    Args:
        up_bytes: Most that go to the server in one piece.    down_bytes: Most that come from it.
    """

    def __init__(self, path: str, *, up_bytes: float = math.inf, down_bytes: float = math.inf) -> None:
        self._up_bytes, self._down_bytes = up_bytes, down_bytes
        self.cutting = True
        self.cuts = 0
        self._path = path
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                there = socket.socket(socket.AF_UNIX)
                self._ends += [client, there]
                there.connect(self._path)
                ways = (client, there, self._up_bytes), (there, client, self._down_bytes)
                for way in ways:
                    threading.Thread(target=self._pump, args=way, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, most_bytes: float) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 20):
                if self.cutting and len(data) > most_bytes:
                    self.cuts += 1
                    target.sendall(data[:4000])
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for end in (self._listener, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def test_a_link_that_cuts_large_answers_for_a_while_kills_nothing(
    make_server: Callable[..., Server], contexts: Any
) -> None:
    made = make_server()
    admin = made.client()
    link = CutsLargeAnswers(str(made.socket), down_bytes=8000)
    put(admin, singles(contexts, 40))
    with working(link.url, lease_ms=200) as (loop, _):
        wait_until(lambda: link.cuts >= 12)  # twice as often as an entry may be begun
        assert loop.finished == 0
        link.cutting = False
        wait_until(lambda: loop.finished == 40)
    link.close()
    assert admin.xlen(KEYS.dead) == 0
    assert int(admin.hget(KEYS.stats, "answered")) == 40


def test_answers_go_out_in_small_steps_over_a_link_that_cuts_what_is_large(
    make_server: Callable[..., Server], contexts: Any
) -> None:
    made = make_server()
    admin = made.client()
    link = CutsLargeAnswers(str(made.socket), up_bytes=20_000)  # its scripts pass
    put(admin, singles(contexts, 64))
    with working(link.url) as (loop, _):
        wait_until(lambda: loop.finished == 64)
    link.close()
    assert link.cuts >= 3
    assert int(admin.hget(KEYS.stats, "answered")) == 64


def test_a_client_takes_its_answers_through_a_server_with_a_small_output_limit(
    make_server: Callable[..., Server], contexts: Any
) -> None:
    made = make_server()
    admin = made.client()
    with Producer(settings=ProducerSettings(url=made.url)) as producer:
        handles = producer.submit_many(list(contexts(200)))
        stream = KEYS.replies(producer.channels[0].client_id)
        rows = [Reply(id=h.id, vector=contexts(1)[0][0], confidence=0.9, margin=0.1) for h in handles]
        admin.config_set("client-output-buffer-limit", "normal 30000 0 0")  # nine answers
        with admin.pipeline() as pipe:  # all of them at once
            for row in rows:
                pipe.xadd(stream, {"reply": wire.encode_reply(row)})
            pipe.execute()
        assert {handle.result(20_000).id for handle in handles} == {handle.id for handle in handles}
    assert admin.info("stats")["client_output_buffer_limit_disconnections"] > 0
