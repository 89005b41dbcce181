"""Levels of priority, on the fake server and on the real ones."""

from __future__ import annotations

import pytest
from echo import EchoWorker
from rig import KEYS, Rig, answer

from producer import Options, Producer, ProducerSettings, QueueFull, errors
from producer.keys import GROUP
from producer.messages import PRIORITIES
from producer.protocol import wire
from workers.engine.entry import Entry

HIGH, NORMAL, LOW = 1, 2, 3


def put(rig: Rig, **counts: int) -> None:
    for priority, count in counts.items():
        rig.put(*(f"{priority}-{i}" for i in range(count)), priority=priority)


def names(entries: list[Entry]) -> list[str]:
    return [wire.decode_request(entry.fields[b"request"]).id for entry in entries]


def levels(entries: list[Entry]) -> list[int]:
    return [sum(entry.place == place for entry in entries) for place in (HIGH, NORMAL, LOW)]


def end(queue, entries: list[Entry]) -> None:
    assert queue.finish([answer(entry) for entry in entries]) == [b"ok"] * len(entries)


def test_while_high_requests_wait_others_get_at_most_an_eighth_of_a_batch(rig: Rig) -> None:
    put(rig, low=40, normal=40, high=40)
    queue = rig.queue("w", batch_max=16)
    first = queue.lease()
    assert levels(first) == [5, 5, 5]
    end(queue, first)
    for _ in range(2):
        entries = queue.lease(block=False)
        assert levels(entries) == [14, 1, 1]
        end(queue, entries)
    assert levels(queue.lease(block=False)) == [7, 1, 1]
    # Then it is the turn of the next level; the one above keeps what it needed last.
    assert levels(queue.lease(block=False)) == [0, 7, 1]
    assert levels(queue.lease(block=False)) == [0, 14, 1]


def test_no_level_starves_under_a_flood_of_a_higher_one(rig: Rig) -> None:
    put(rig, low=12, normal=12)
    queue = rig.queue("w", batch_max=16)
    left = 24
    for turn in range(14):
        put(rig, high=16)
        entries = queue.lease(block=turn == 0)
        assert len(entries) <= 16
        left -= sum(levels(entries)[1:])
        end(queue, entries)
    assert left == 0
    assert rig.admin.xlen(KEYS.high) > 0


def test_every_level_moves_when_a_batch_is_one_request(rig: Rig) -> None:
    put(rig, low=2, normal=2, high=2)
    queue = rig.queue("w", batch_max=1)
    end(queue, queue.lease())
    end(queue, queue.lease(block=False))
    assert [rig.admin.xlen(stream) for stream in KEYS.levels] == [0, 0, 0]


def test_within_a_level_the_order_holds(rig: Rig) -> None:
    put(rig, low=9, normal=9, high=9)
    queue = rig.queue("w", batch_max=6)
    read: list[str] = []
    while len(read) < 27:
        read += names(queue.lease(block=not queue.more))
    for priority in PRIORITIES:
        of_level = [name for name in read if name.startswith(priority)]
        assert of_level == [f"{priority}-{i}" for i in range(9)]


def test_a_batch_of_several_levels_ends_in_one_step_with_exact_byte_counts(rig: Rig) -> None:
    put(rig, low=2, normal=2, high=2)
    queue = rig.queue("w")
    entries = queue.lease()
    sizes = [len(entry.fields[b"request"]) for entry in entries]
    assert levels(entries) == [2, 2, 2]
    end(queue, [*entries[:2], entries[4]])
    assert rig.bytes_left() == [0, sizes[2] + sizes[3], sizes[5], 0, 0]
    escalated = [answer(entry, "escalate") for entry in entries if entry.place == NORMAL]
    last = answer(entries[-1], "dead", reason="r", message="m")
    assert queue.finish([*escalated, last]) == [b"ok"] * 3
    assert rig.bytes_left() == [0, 0, 0, sizes[2] + sizes[3], 0]


def test_entries_of_two_levels_with_the_same_stream_id_are_two(rig: Rig) -> None:
    put(rig, normal=1)
    ((entry_id, fields),) = rig.admin.xrange(KEYS.requests)
    rig.admin.xadd(KEYS.low, fields, id=entry_id)
    queue = rig.queue("w")
    normal, low = queue.lease()
    assert normal.id == low.id
    end(queue, [normal])
    assert queue.finish([answer(normal)]) == [b"lost"]
    assert rig.admin.xlen(KEYS.low) == 1
    end(queue, [low])


def test_leases_that_ran_out_come_back_from_every_level_the_urgent_ones_first(rig: Rig) -> None:
    put(rig, low=2, normal=2, high=2)
    assert len(rig.queue("dead").lease()) == 6
    rig.expire_leases()
    put(rig, high=1)
    queue = rig.queue("alive", batch_max=4)
    first, second = queue.lease(), queue.lease()
    assert (levels(first), levels(second)) == ([2, 2, 0], [0, 0, 2])
    assert {entry.deliveries for entry in first + second} == {2}
    assert names(queue.lease()) == ["high-0"]


def test_a_leaving_worker_hands_every_level_back(rig: Rig) -> None:
    put(rig, low=1, normal=1, high=1)
    leaving = rig.queue("leaving")
    assert len(leaving.lease()) == 3
    assert leaving.release() == 3
    assert levels(rig.queue("staying").lease()) == [1, 1, 1]


def test_a_level_that_was_deleted_is_an_error_that_a_new_group_heals(rig: Rig) -> None:
    queue = rig.queue("w")
    rig.admin.delete(KEYS.low)
    for block in (True, False):
        with pytest.raises(errors.ServerError, match="NOGROUP"):
            queue.lease(block=block)
    queue.ensure_group()
    put(rig, low=1)
    assert levels(queue.lease()) == [0, 0, 1]


# -- the producer's side ------------------------------------------------------------------------


def settings(server, **changes) -> ProducerSettings:
    return ProducerSettings(url=server.url, result_timeout_ms=10_000, **changes)


def test_a_request_goes_to_its_level_and_is_answered(server, contexts) -> None:
    options = [Options(priority=priority) for priority in PRIORITIES]
    with Producer(settings=settings(server)) as producer:
        handles = producer.submit_many(contexts(3), options=options)
        for stream, handle, option in zip(KEYS.levels, handles, options, strict=True):
            ((_, fields),) = server.admin.xrange(stream)
            request = wire.decode_request(fields[b"request"])
            assert (request.id, request.priority) == (handle.id, option.priority)
            assert fields[b"id"].decode() == handle.id
        with EchoWorker(server.url):
            assert [handle.result().id for handle in handles] == [handle.id for handle in handles]
        assert [int(server.admin.hget(KEYS.stats, f"accepted:{p}")) for p in PRIORITIES] == [1, 1, 1]


def test_a_priority_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(errors.InvalidRequest, match="priority is 'urgent'; send one of high, normal, low"):
        Options(priority="urgent")


def test_a_flood_of_a_lower_level_leaves_room_for_the_one_above(server, contexts) -> None:
    rows = contexts(9)
    with Producer(settings=settings(server, entries_max=8)) as producer:
        accepted = {}
        for priority in reversed(PRIORITIES):
            with pytest.raises(QueueFull, match="limit of 8 entries") as caught:
                producer.submit_many(rows, options=Options(priority=priority))
            accepted[priority] = len(caught.value.accepted)
        assert accepted == {"low": 4, "normal": 4, "high": 2}
        refused = {p: int(server.admin.hget(KEYS.stats, f"refused:{p}")) for p in PRIORITIES}
        assert refused == {"low": 5, "normal": 5, "high": 7}


def test_the_byte_limit_is_of_all_levels_together(server, contexts) -> None:
    rows = contexts(9)
    with Producer(settings=settings(server, bytes_max=64_000)) as producer:
        accepted = []
        for priority in reversed(PRIORITIES):
            with pytest.raises(QueueFull) as caught:
                producer.submit_many(rows, options=Options(priority=priority))
            accepted.append(len(caught.value.accepted))
        assert accepted == [2, 2, 1]
        total = sum(int(server.admin.get(name)) for name in KEYS.counters[:3])
        assert 64_000 < total <= 80_000


def test_a_refused_level_does_not_hold_up_another_one(server, contexts) -> None:
    mixed = [Options(priority=p) for p in ("low", "low", "high", "low", "normal")]
    with Producer(settings=settings(server, entries_max=2)) as producer:
        with pytest.raises(QueueFull) as caught:
            producer.submit_many(contexts(5), options=mixed)
        assert len(caught.value.accepted) == 2  # one low, one high
        assert producer.in_flight == 2
        with EchoWorker(server.url):
            assert all(handle.result().id == handle.id for handle in caught.value.accepted)


def test_a_request_of_any_level_can_be_cancelled(server, contexts) -> None:
    options = [Options(priority=priority) for priority in PRIORITIES]
    with Producer(settings=settings(server)) as producer:
        handles = producer.submit_many(contexts(3), options=options)
        assert [handle.cancel() for handle in handles] == [True] * 3
        assert [server.admin.xlen(stream) for stream in KEYS.levels] == [0, 0, 0]
        assert [int(server.admin.get(name)) for name in KEYS.counters[:3]] == [0, 0, 0]


# -- wherever it waits --------------------------------------------------------------------------


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("hops", [1, 2])
def test_an_escalated_request_can_be_cancelled_while_it_waits(
    rig: Rig, context, priority: str, hops: int
) -> None:
    with Producer(settings=ProducerSettings(url=rig.url)) as producer:
        handle = producer.submit(context, priority=priority)
        for stream in (KEYS.requests, KEYS.fallback)[:hops]:
            queue = rig.queue("w", stream)
            (entry,) = queue.lease()
            assert not handle.cancel()  # leased
            assert queue.finish([answer(entry, "escalate")]) == [b"ok"]
        assert 0 < rig.admin.pttl(KEYS.seen(handle.id)) <= producer.settings.seen_window_ms
        assert handle.cancel()
        with pytest.raises(errors.Cancelled):
            handle.result()
        assert rig.admin.xlen(KEYS.places[2 + hops]) == 0
        assert rig.bytes_left() == [0] * 5
        assert rig.queue("next", KEYS.places[2 + hops]).lease() == []


def test_an_escalated_request_that_a_fallback_has_is_not_cancelled(rig: Rig, context) -> None:
    with Producer(settings=ProducerSettings(url=rig.url)) as producer:
        handle = producer.submit(context)
        amn, fallback = rig.queue("amn"), rig.queue("fallback", KEYS.fallback)
        amn.finish([answer(entry, "escalate") for entry in amn.lease()])
        (entry,) = fallback.lease()
        assert not handle.cancel()
        assert fallback.finish([answer(entry)]) == [b"ok"]
        assert handle.result().id == handle.id


def test_an_entry_without_an_id_escalates_all_the_same(rig: Rig) -> None:
    put(rig, normal=1)
    queue = rig.queue("w")
    assert queue.finish([answer(entry, "escalate") for entry in queue.lease()]) == [b"ok"]
    ((_, fields),) = rig.admin.xrange(KEYS.fallback)
    assert set(fields) == {b"request", b"answer"}


def test_an_escalation_does_not_touch_the_record_of_a_later_request_with_that_id(rig: Rig, context) -> None:
    with Producer(settings=ProducerSettings(url=rig.url)) as producer:
        producer.submit(context, request_id="a")
        amn = rig.queue("amn")
        (entry,) = amn.lease()
        later = f"{producer.channels[0].note} call 2 99-1"
        rig.admin.set(KEYS.seen("a"), later)  # the window ended, and the id was used again
        amn.finish([answer(entry, "escalate")])
        assert rig.admin.get(KEYS.seen("a")).decode() == later


def test_nothing_is_pending_after_all_of_this(rig: Rig) -> None:
    put(rig, low=3, normal=3, high=3)
    queue = rig.queue("w", batch_max=3)
    end(queue, queue.lease())
    while queue.more:
        end(queue, queue.lease(block=False))
    assert [rig.admin.xpending(stream, GROUP)["pending"] for stream in KEYS.levels] == [0, 0, 0]
    assert rig.bytes_left() == [0] * 5
