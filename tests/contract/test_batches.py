"""Batches of contexts from the producer through the workers and back, on every server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from rig import KEYS, Rig

import workers.engine.queue
from amn.policy import load_policy
from ops.deadletters import DeadLetters
from producer import AsyncProducer, Options, Producer, ProducerSettings, Windows, errors
from producer.messages import BatchReply, Failure, Request
from producer.protocol import wire
from workers.engine.loop import Loop
from workers.engine.microbatch import assemble
from workers.engine.outcomes import dead
from workers.engine.queue import LeasedQueue
from workers.handlers.amn import AmnHandler, Gate
from workers.handlers.fallback import FallbackHandler
from workers.settings import QueueSettings, WorkerSettings


class Bank:
    """Finds everything near, and nothing else as near."""

    bank_id = "bank@0"

    def top2(self, vectors: np.ndarray) -> tuple[np.ndarray, ...]:
        ones = np.ones(len(vectors), np.float32)
        return 0.9 * ones, 0.5 * ones, np.zeros(len(vectors), np.intp)


class Model:
    """Repeats one of the context's vectors."""

    def __init__(self, name: str, place: int) -> None:
        self.name, self.model_id, self.bank, self._place = name, f"{name}@0", Bank(), place

    def forward(self, contexts: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(contexts[:, self._place])

    predict = forward


def amn_handler(settings: WorkerSettings) -> AmnHandler:
    return AmnHandler(Model("amn", -1), Gate(policy=load_policy("card")), settings)  # type: ignore[arg-type]


@contextmanager
def service(url: str, **limits: int) -> Iterator[Any]:
    """An AMN worker and a fallback, each in a thread."""
    settings = WorkerSettings(
        kind="amn",
        producer=ProducerSettings(url=url),
        queue=QueueSettings(block_ms=20, **limits),
        sample_rate=0,
    )
    handlers: dict[str, Any] = {
        KEYS.requests: amn_handler(settings),
        KEYS.fallback: FallbackHandler(Model("gru", 0)),  # type: ignore[arg-type]
    }
    loops = [
        Loop(LeasedQueue(settings, stream, f"w-{i}"), of) for i, (stream, of) in enumerate(handlers.items())
    ]
    threads = [threading.Thread(target=loop.run, daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    try:
        yield loops
    finally:
        for loop, thread in zip(loops, threads, strict=True):
            loop.stop()
            thread.join(10)
            loop.queue.close()


def settings(target: Any, **changes: Any) -> ProducerSettings:
    return ProducerSettings(url=target.url, result_timeout_ms=20_000, **changes)


def batch_request(name: str, contexts: np.ndarray, **fields: Any) -> bytes:
    return wire.encode_request(Request(id=name, reply_to="client", context=contexts, **fields))


def test_a_batch_is_one_request_with_one_answer(server: Any, contexts: Callable[..., Any]) -> None:
    rows = contexts(9)
    with service(server.url), Producer(settings=settings(server)) as producer:
        reply = producer.predict_batch(rows.astype(np.float16))
        np.testing.assert_array_equal(reply.vectors, rows.astype(np.float16)[:, -1].astype(np.float32))
        assert (len(reply), reply.served_by, reply.model) == (9, "amn", "amn@0")
        handles = [producer.submit_batch(rows[: i + 1], priority="low") for i in range(9)]
        single = producer.submit(rows[0])
        for i, handle in enumerate(handles):
            np.testing.assert_array_equal(handle.result().vectors, rows[: i + 1, -1])
        np.testing.assert_array_equal(single.result().vector, rows[0, -1])
        assert (producer.in_flight, producer.stray_replies) == (0, 0)
    stats = {name.decode(): int(n) for name, n in server.admin.hgetall(KEYS.stats).items()}
    assert (stats["answered"], stats["batch:contexts"]) == (11, 9 + 45)
    assert [server.admin.exists(name) for name in KEYS.counters] == [0] * 5


def test_contexts_that_share_vectors_are_answered_as_if_they_did_not(
    server: Any, contexts: Callable[..., Any]
) -> None:
    rows, ends = contexts(4).reshape(20, 768).astype(np.float16), np.array([4, 5, 6, 11, 16, 17, 19])
    shared = Windows(vectors=rows, ends=ends)
    with service(server.url), Producer(settings=settings(server)) as producer:
        for options in (Options(), Options(escalate=True, provisional=True)):
            reply, whole = (
                producer.predict_batch(what, options=options) for what in (shared, rows[shared.rows])
            )
            np.testing.assert_array_equal(reply.vectors, whole.vectors)
            assert (len(reply), reply.served_by) == (7, whole.served_by)
        assert reply.served_by == "gru"


def test_a_bad_vector_that_contexts_share_fails_their_message_alone(
    server: Any, contexts: Callable[..., Any]
) -> None:
    rows = contexts(2).reshape(10, 768)
    spoilt = np.concatenate([rows, 3 * rows[:1]])
    with service(server.url), Producer(settings=settings(server)) as producer:
        # A client that says that it looked, and did not: the worker looks all the same.
        bad = producer.submit_batch(Windows(vectors=spoilt, ends=np.array([5, 9, 10]), checked=True))
        good = producer.submit_batch(Windows(vectors=rows, ends=np.array([5, 9])))
        with pytest.raises(errors.BadNorm, match=r"contexts\[2\]: a context vector has norm 3"):
            bad.result()
        np.testing.assert_array_equal(good.result().vectors, rows[[5, 9]])


def test_the_verbs_can_be_awaited(server: Any, contexts: Callable[..., Any], run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with AsyncProducer(settings=settings(server)) as producer:
            reply = await producer.predict_batch(contexts(3))
            np.testing.assert_array_equal(reply.vectors, contexts(3)[:, -1])
            handle = await producer.submit_batch(
                contexts(2), options=Options(lane="sci-fact", provisional=True)
            )
            assert (await handle.first()).id == handle.id
            assert (await handle.result()).served_by == "gru"

    with service(server.url):
        run(main())


def test_a_batch_of_a_high_stakes_lane_is_answered_by_the_fallback(
    server: Any, contexts: Callable[..., Any]
) -> None:
    with service(server.url), Producer(settings=settings(server)) as producer:
        handle = producer.submit_batch(contexts(6), lane="med-guideline", provisional=True)
        reply = handle.result()
        np.testing.assert_allclose(reply.vectors, contexts(6)[:, 0], atol=1e-6)
        assert (reply.served_by, reply.provisional, reply.reasons(5)) == ("gru", False, ("high_stakes_lane",))
        assert set(reply.tiers) == {"amn@0", "gru@0"}
    assert [server.admin.exists(name) for name in KEYS.counters] == [0] * 5


def test_a_partition_takes_a_whole_batch(server: Any, contexts: Callable[..., Any]) -> None:
    with Producer(partitions=2, settings=settings(server)) as producer:
        handles = [producer.submit_batch(contexts(2)) for _ in range(2)]
        waiting = [server.admin.xlen(channel.keys.requests) for channel in producer.channels]
        assert waiting == [1, 1]
        assert all(producer.cancel(handle) for handle in handles)


def test_a_batch_past_its_deadline_fails_by_name(rig: Rig, contexts: Callable[..., Any]) -> None:
    rig.put_bytes(batch_request("late", contexts(3), expires_at_ms=1000.0))
    queue = rig.queue("w")
    assert queue.finish(assemble(queue.lease(), queue.settings, 2000.0, 0.0).refused) == [b"ok"]
    [reply] = rig.replies()
    assert isinstance(reply, Failure)
    assert (reply.id, reply.code) == ("late", "deadline_exceeded")


@pytest.mark.parametrize("lane", ["general", "sci-fact"])
def test_a_waiting_batch_is_taken_back_wherever_it_waits(
    rig: Rig, contexts: Callable[..., Any], lane: str
) -> None:
    with Producer(settings=ProducerSettings(url=rig.url)) as producer:
        handle = producer.submit_batch(contexts(4), lane=lane)
        if lane == "sci-fact":
            queue = rig.queue("w")
            batch = assemble(queue.lease(), queue.settings, 0.0, 0.0)
            assert not handle.cancel()
            assert queue.finish(amn_handler(queue.settings).handle(batch)) == [b"ok"]
            assert rig.bytes_left()[3] > 4 * 15_360
        assert handle.cancel()
        with pytest.raises(errors.Cancelled):
            handle.result()
    assert rig.bytes_left() == [0] * 5


def test_a_batch_whose_worker_died_is_answered_once(rig: Rig, contexts: Callable[..., Any]) -> None:
    rig.put_bytes(batch_request("b", contexts(5)))
    late, other = rig.queue("late"), rig.queue("other")
    first = amn_handler(late.settings).handle(assemble(late.lease(), late.settings, 0.0, 0.0))
    rig.expire_leases()
    second = amn_handler(other.settings).handle(assemble(other.lease(), other.settings, 0.0, 0.0))
    assert late.finish(first) == [b"lost"]
    assert other.finish(second) == [b"ok"]
    [reply] = rig.replies()
    assert isinstance(reply, BatchReply)
    assert len(reply) == 5
    assert rig.stats()["batch:contexts"] == 5
    assert rig.bytes_left() == [0] * 5


def test_a_batch_in_the_dead_letters_goes_back_to_its_level(rig: Rig, contexts: Callable[..., Any]) -> None:
    rig.put_bytes(batch_request("b", contexts(3), priority="low"), level=2)
    for name in ("w1", "w2"):
        rig.begun(rig.queue(name, deliveries_max=1))
        rig.expire_leases()
    queue = rig.queue("last", deliveries_max=1)
    assert queue.finish(assemble(rig.begun(queue), queue.settings, 0.0, 0.0).refused) == [b"ok"]
    [reply] = rig.replies()
    assert isinstance(reply, Failure)
    assert reply.code == "dead_lettered"
    letters = DeadLetters(rig.admin, ProducerSettings(url=rig.url))
    [letter] = letters.newest_first()
    assert letter.request is not None
    assert letter.request.count == 3
    [back] = letters.requeue([letter], "replayer")
    assert back.status == "ok"
    [entry] = rig.queue("w3").lease()
    assert wire.decode_request(entry.fields[b"request"], batches=True).count == 3
    assert rig.bytes_left()[2] == len(entry.fields[b"request"])


def test_dead_batches_take_the_room_of_many_letters(rig: Rig, contexts: Callable[..., Any]) -> None:
    for i in range(8):
        rig.put_bytes(batch_request(f"b{i}", contexts(8), lane="gossip"))  # two times 64 KiB
    queue = rig.queue("w", dead_entries_max=10)
    outcomes = [dead(entry, None, "undecodable", "") for entry in queue.lease()]
    for outcome in outcomes:
        outcome.reply_to = "client"  # garbage that names nobody has less room
    assert set(queue.finish(outcomes)) == {b"ok"}
    assert rig.admin.xlen(KEYS.dead) == 5


def test_the_queues_limit_of_bytes_holds_for_batches(server: Any, contexts: Callable[..., Any]) -> None:
    with Producer(settings=settings(server, bytes_max=400_000)) as producer:
        producer.submit_batch(contexts(20))
        with pytest.raises(errors.QueueFull):
            producer.submit_batch(contexts(20))
        assert producer.in_flight == 1
        assert int(server.admin.get(KEYS.requests_bytes)) < 400_000


def test_a_read_of_large_messages_is_bounded_in_bytes(
    rig: Rig, contexts: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.engine.sizes, "READ_BYTES_MAX", 300_000)
    for i in range(7):
        rig.put_bytes(batch_request(f"b{i}", contexts(8)))  # 123 KB each
    rig.put(*(f"r{i}" for i in range(40)))
    queue = rig.queue("w", batch_max=32)
    sizes = []
    while entries := queue.lease(block=False):
        sizes.append((len(entries), queue.heavy))
    # The first read knows what waits on average; then large ones bound it until they are past.
    assert sum(count for count, _ in sizes) == 47
    heavy = [count for count, is_heavy in sizes if is_heavy]
    assert max(heavy[1:]) <= 2
    assert not sizes[-1][1]
    # After some reads without, it is as many as ever.
    assert max(count for count, is_heavy in sizes if not is_heavy) > 2


def test_a_worker_that_starts_before_large_messages_reads_few(
    rig: Rig, contexts: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.engine.sizes, "READ_BYTES_MAX", 300_000)
    for i in range(7):
        rig.put_bytes(batch_request(f"b{i}", contexts(8)))
    assert len(rig.queue("w").lease()) == 2


def test_a_step_of_a_loop_takes_a_part_of_what_was_read(
    rig: Rig, contexts: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.engine.microbatch, "PORTION_BYTES", 300_000)
    for i in range(5):
        rig.put_bytes(batch_request(f"b{i}", contexts(8)))
    queue = rig.queue("w")
    handler = Counting(queue.settings)
    loop = Loop(queue, handler)
    entries = queue.lease()
    assert (len(entries), queue.heavy) == (5, True)
    while entries:
        entries = loop.step(entries)
    loop._join()
    assert handler.sizes == [2, 2, 1]
    assert [reply.id for reply in rig.replies()] == [f"b{i}" for i in range(5)]
    assert loop.finished == 5


class Counting:
    """AMN's handler; remembers how many requests came at a time."""

    def __init__(self, of: WorkerSettings) -> None:
        self.sizes: list[int] = []
        self._handler = amn_handler(of)

    def handle(self, batch: Any) -> Any:
        self.sizes.append(len(batch))
        return self._handler.handle(batch)
