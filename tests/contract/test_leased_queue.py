"""The leased queue: what every worker may rely on, on the fake server and on the real ones."""

from __future__ import annotations

import time
from hashlib import sha1

import pytest
import redis
from rig import KEYS, REPLIES, Rig, answer, show_worker

from ops.health.workers import known
from producer.keys import GROUP
from producer.messages import Failure, Reply
from workers.engine import queue
from workers.engine.entry import Outcome
from workers.engine.keeper import Keeper
from workers.engine.loop import Loop
from workers.engine.microbatch import MicroBatch, assemble
from workers.engine.queue import UNREAD_BYTES
from workers.engine.reads import load


def test_a_finished_entry_is_answered_counted_and_gone(rig: Rig) -> None:
    rig.put("a", "b")
    queue = rig.queue("w")
    entries = queue.lease()
    assert [entry.deliveries for entry in entries] == [1, 1]
    assert queue.finish([answer(entry) for entry in entries]) == [b"ok", b"ok"]
    assert [reply.id for reply in rig.replies()] == ["a", "b"]
    assert 0 < rig.admin.pttl(REPLIES) <= queue.settings.queue.reply_ttl_ms
    assert rig.stats() == {"answered": 2, "answered:amn": 2}
    assert rig.admin.xlen(KEYS.requests) == 0
    assert rig.admin.xpending(KEYS.requests, GROUP)["pending"] == 0
    assert not rig.admin.exists(KEYS.requests_bytes)


def test_a_lease_takes_what_is_there_up_to_the_batch(rig: Rig) -> None:
    rig.put(*"abcdefgh")
    queue = rig.queue("w", batch_max=6)
    # A third of the batch from each of three levels; then a backlog is known, and read as one.
    assert [(len(queue.lease()), queue.more)] == [(2, True)]
    assert [(len(queue.lease(block=False)), queue.more) for _ in range(3)] == [
        (4, True),
        (2, False),
        (0, False),
    ]


def test_a_read_that_is_not_to_block_comes_back_at_once_from_a_single_stream_too(rig: Rig) -> None:
    queue = rig.queue("w", stream=KEYS.fallback, block_ms=5_000)
    started_s = time.monotonic()
    assert queue.lease(block=False) == []
    assert time.monotonic() - started_s < 2


def test_a_finish_that_is_repeated_does_nothing_the_second_time(rig: Rig) -> None:
    rig.put("a")
    queue = rig.queue("w")
    outcomes = [answer(entry) for entry in queue.lease()]
    assert queue.finish(outcomes) == [b"ok"]
    assert queue.finish(outcomes) == [b"lost"]
    assert len(rig.replies()) == 1


def test_an_entry_given_twice_in_one_call_ends_once(rig: Rig) -> None:
    rig.put("a")
    queue = rig.queue("w")
    (entry,) = queue.lease()
    assert queue.finish([answer(entry), answer(entry)]) == [b"ok", b"lost"]
    assert len(rig.replies()) == 1


def test_a_late_worker_loses_to_the_one_that_took_over(rig: Rig) -> None:
    rig.put("a")
    late, other = rig.queue("late"), rig.queue("other")
    (first,) = late.lease()
    rig.expire_leases()
    (second,) = other.lease()
    assert (second.id, second.deliveries) == (first.id, 2)
    assert late.finish([answer(first)]) == [b"lost"]
    assert rig.replies() == []
    assert other.finish([answer(second)]) == [b"ok"]
    assert len(rig.replies()) == 1
    assert rig.stats()["lost"] == 1


def test_entries_of_a_worker_that_died_come_back_when_its_lease_ends(rig: Rig) -> None:
    rig.put("a")
    dead, alive = rig.queue("dead", lease_ms=150), rig.queue("alive", lease_ms=150)
    (first,) = dead.lease()
    assert alive.lease() == []
    give_up_at = time.monotonic() + 20
    while not (taken := alive.lease()):
        assert time.monotonic() < give_up_at
    assert [(entry.id, entry.fields, entry.deliveries) for entry in taken] == [(first.id, first.fields, 2)]


def test_a_renewed_lease_is_kept_and_is_no_delivery(rig: Rig) -> None:
    rig.put("a", "b")
    owner, other = rig.queue("owner"), rig.queue("other")
    ids = [entry.id for entry in owner.lease()]
    rig.expire_leases()
    extend = rig.admin.register_script(load("extend").text)
    assert extend(keys=[KEYS.requests], args=[GROUP, "owner", *ids]) == 2
    assert other.lease() == []
    assert rig.deliveries() == [1, 1]


def test_a_renewal_does_not_take_back_what_another_worker_has(rig: Rig) -> None:
    rig.put("a")
    late, other = rig.queue("late"), rig.queue("other")
    (entry,) = late.lease()
    rig.expire_leases()
    other.lease()
    extend = rig.admin.register_script(load("extend").text)
    assert extend(keys=[KEYS.requests], args=[GROUP, "late", entry.id]) == 0
    assert rig.admin.xpending_range(KEYS.requests, GROUP, "-", "+", 10)[0]["consumer"] == b"other"


def test_what_a_worker_does_not_have_in_hand_is_not_renewed(rig: Rig) -> None:
    rig.put("in-hand", "given-up")
    owner, other = rig.queue("owner"), rig.queue("other")
    in_hand, given_up = owner.lease()
    rig.expire_leases()
    extend = rig.admin.register_script(load("extend").text)
    assert extend(keys=[KEYS.requests], args=[GROUP, "owner", in_hand.id]) == 1
    assert [entry.id for entry in other.lease()] == [given_up.id]


def test_a_delivery_that_nobody_received_does_not_count(rig: Rig) -> None:
    rig.put("a")
    for number in range(20):  # each answer is lost on its way
        (entry,) = rig.queue(f"w{number}", deliveries_max=2).lease()
        rig.expire_leases()
    assert entry.deliveries == 2
    assert rig.deliveries() == [1]


def test_work_on_a_taken_over_entry_counts_once_however_often_the_count_is_repeated(rig: Rig) -> None:
    rig.put("a", "b")
    rig.queue("dead").lease()
    rig.expire_leases()
    queue = rig.queue("w")
    first, second = queue.lease()
    assert queue.begin([first]) == queue.begin([first]) == [first]
    assert rig.deliveries() == [2, 1]
    rig.expire_leases()
    assert [entry.deliveries for entry in rig.queue("other").lease()] == [3, 2]
    assert queue.begin([first, second]) == []  # another worker's now
    rig.admin.flushall()
    assert queue.begin([first]) == []


def test_released_entries_are_leased_again_at_once(rig: Rig) -> None:
    rig.put("a", "b")
    leaving, staying = rig.queue("leaving"), rig.queue("staying")
    ids = [entry.id for entry in leaving.lease()]
    assert leaving.release() == 2
    assert b"leaving" not in [c["name"] for c in rig.admin.xinfo_consumers(KEYS.requests, GROUP)]
    assert [entry.id for entry in staying.lease()] == ids
    assert leaving.release() == 0


def test_an_escalated_entry_moves_with_its_answer_and_its_bytes(rig: Rig) -> None:
    rig.put("a")
    amn, fallback = rig.queue("amn"), rig.queue("fallback", KEYS.fallback)
    (entry,) = amn.lease()
    outcome = answer(entry, "escalate")
    assert amn.finish([outcome]) == [b"ok"]
    assert rig.replies() == []
    assert not rig.admin.exists(KEYS.requests_bytes)
    assert int(rig.admin.get(KEYS.fallback_bytes)) == len(entry.fields[b"request"])
    (moved,) = fallback.lease()
    assert moved.fields == {b"request": entry.fields[b"request"], b"answer": outcome.payload}
    assert fallback.finish([answer(moved)]) == [b"ok"]
    assert len(rig.replies()) == 1
    assert not rig.admin.exists(KEYS.fallback_bytes)


def test_a_provisional_answer_goes_out_beside_the_escalation(rig: Rig) -> None:
    rig.put("a")
    queue = rig.queue("w")
    assert queue.finish([answer(entry, "both") for entry in queue.lease()]) == [b"ok"]
    assert len(rig.replies()) == 1
    assert rig.admin.xlen(KEYS.fallback) == 1


@pytest.mark.parametrize("limits", [{"fallback_entries_max": 1}, {"fallback_bytes_max": 20_000}])
def test_an_escalation_that_finds_no_room_can_be_ended_in_another_way(
    rig: Rig, limits: dict[str, int]
) -> None:
    rig.put("a", "b")
    queue = rig.queue("w", **limits)
    entries = queue.lease()
    assert queue.finish([answer(entry, "both") for entry in entries]) == [b"ok", b"full"]
    assert (len(rig.replies()), rig.admin.xlen(KEYS.fallback)) == (1, 1)
    assert int(rig.admin.get(KEYS.requests_bytes)) == len(entries[1].fields[b"request"])
    assert queue.finish([answer(entries[1])]) == [b"ok"]
    assert not rig.admin.exists(KEYS.requests_bytes)
    assert rig.stats()["full"] == 1


def test_a_fallback_escalates_to_the_secondary_and_behind_that_there_is_no_room(rig: Rig) -> None:
    rig.put("a", "b")
    amn = rig.queue("amn")
    fallback = rig.queue("fallback", KEYS.fallback, secondary_entries_max=1)
    secondary = rig.queue("secondary", KEYS.secondary)
    amn.finish([answer(entry, "escalate") for entry in amn.lease()])
    first, second = fallback.lease()
    better = answer(first, "escalate")
    assert fallback.finish([better, answer(second, "escalate")]) == [b"ok", b"full"]
    assert fallback.finish([answer(second)]) == [b"ok"]
    assert not rig.admin.exists(KEYS.fallback_bytes)
    assert int(rig.admin.get(KEYS.secondary_bytes)) == len(first.fields[b"request"])
    (moved,) = secondary.lease()
    assert (moved.fields[b"request"], moved.fields[b"answer"]) == (first.fields[b"request"], better.payload)
    assert secondary.finish([answer(moved, "escalate")]) == [b"full"]
    assert secondary.finish([answer(moved)]) == [b"ok"]
    assert not rig.admin.exists(KEYS.secondary_bytes)
    assert sorted(reply.id for reply in rig.replies()) == ["a", "b"]


def test_a_dead_letter_says_why_and_how_often_it_was_tried(rig: Rig) -> None:
    rig.put_bytes(b"not msgpack at all")
    first, queue = rig.queue("first"), rig.queue("w")
    first.lease()
    rig.expire_leases()
    (entry,) = rig.begun(queue)
    batch = assemble([entry], queue.settings, 0.0, 0.0)
    assert queue.finish(batch.refused) == [b"ok"]
    ((_, letter),) = rig.admin.xrange(KEYS.dead)
    assert letter[b"reason"] == b"undecodable"
    assert b"not msgpack" in letter[b"message"]
    assert letter[b"deliveries"] == b"2"
    assert (letter[b"source"], letter[b"entry"]) == (KEYS.requests.encode(), entry.id)
    assert letter[b"request"] == b"not msgpack at all"
    assert letter[b"sha1"] == sha1(b"not msgpack at all").hexdigest().encode()
    assert rig.stats() == {"dead": 1, "dead:undecodable": 1}
    assert rig.admin.xlen(KEYS.requests) == 0
    assert not rig.admin.exists(KEYS.requests_bytes)


def test_an_entry_that_nobody_ends_becomes_a_dead_letter_and_its_client_is_told(rig: Rig) -> None:
    rig.put("a")
    for delivery in range(1, 4):
        queue = rig.queue(f"w{delivery}", deliveries_max=2)
        (entry,) = rig.begun(queue)
        assert entry.deliveries == delivery
        rig.expire_leases()
    queue = rig.queue("last", deliveries_max=2)
    batch = assemble(rig.begun(queue), queue.settings, 0.0, 0.0)
    assert len(batch) == 0
    assert queue.finish(batch.refused) == [b"ok"]
    assert rig.admin.xrange(KEYS.dead)[0][1][b"reason"] == b"worker_died"
    (reply,) = rig.replies()
    assert isinstance(reply, Failure)
    assert (reply.id, reply.code) == ("a", "dead_lettered")


class Picky:
    """Answers, but cannot take a batch with `poison` in it; stops its loop after `last` entries."""

    def __init__(self, poison: str) -> None:
        self.poison = poison
        self.loop: Loop | None = None

    def handle(self, batch: MicroBatch) -> list[Outcome]:
        assert self.loop is not None
        self.loop.stop()  # after this batch
        if self.poison in [request.id for request in batch.requests]:
            raise RuntimeError("a tensor exploded")
        return [answer(entry) for entry in batch.entries]


def test_one_bad_request_fails_alone(rig: Rig) -> None:
    rig.put(*"abcdefg")
    handler = Picky("e")
    handler.loop = Loop(rig.queue("w"), handler)
    handler.loop.run()
    replies = {reply.id: reply for reply in rig.replies()}
    assert sorted(replies) == list("abcdefg")
    failed = replies.pop("e")
    assert isinstance(failed, Failure)
    assert failed.code == "dead_lettered"
    assert all(isinstance(reply, Reply) for reply in replies.values())
    assert rig.admin.xrange(KEYS.dead)[0][1][b"reason"] == b"batch_breaking"
    assert handler.loop.finished == 7
    assert rig.admin.xlen(KEYS.requests) == 0


def test_a_sampled_request_and_the_truth_that_it_reveals_go_to_the_shadow_stream(rig: Rig) -> None:
    rig.put("a")
    queue = rig.queue("w")
    (entry,) = queue.lease()
    outcome = answer(entry, sample_key="50 s#1", truth_key="s#0", truth=b"truth")
    assert queue.finish([outcome]) == [b"ok"]
    prediction, truth = [fields for _, fields in rig.admin.xrange(KEYS.shadow)]
    assert prediction == {
        b"kind": b"prediction",
        b"key": b"s#1",
        b"one_in": b"50",
        b"request": entry.fields[b"request"],
        b"answer": outcome.payload,
    }
    assert truth == {b"kind": b"truth", b"key": b"s#0", b"vector": b"truth"}
    assert rig.stats()["shadowed"] == 1


def test_without_a_shadow_worker_its_stream_stays_at_the_cap(real_rig: Rig) -> None:
    rig = real_rig
    queue = rig.queue("w", shadow_entries_max=20)
    for _ in range(40):
        rig.put(*"abcdefgh")
        outcomes = [answer(entry, sample_key=f"k{entry.id!r}") for entry in queue.lease()]
        assert queue.finish(outcomes) == [b"ok"] * 8
    # The cap is approximate: a block of the stream is dropped as a whole.
    assert 20 <= rig.admin.xlen(KEYS.shadow) <= 120
    assert len(rig.replies()) == 320


def test_a_lease_whose_entry_was_deleted_is_lost_and_the_others_are_not(rig: Rig) -> None:
    rig.put("a", "b", "c")
    queue = rig.queue("w")
    entries = queue.lease()
    rig.admin.xdel(KEYS.requests, entries[1].id)
    assert queue.finish([answer(entry, "escalate") for entry in entries]) == [b"ok", b"lost", b"ok"]
    rig.expire_leases()
    assert rig.queue("next").lease() == []
    assert rig.admin.xpending(KEYS.requests, GROUP)["pending"] == 0


def test_after_a_flush_a_lease_is_lost_and_no_error(rig: Rig) -> None:
    rig.put("a")
    queue = rig.queue("w")
    outcomes = [answer(entry) for entry in queue.lease()]
    rig.admin.flushall()
    assert queue.finish(outcomes) == [b"lost"]


def test_a_server_out_of_memory_can_still_be_drained(real_rig: Rig) -> None:
    rig = real_rig
    rig.put(*"abcdefgh")
    queue = rig.queue("w")
    entries = queue.lease()
    rig.admin.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            rig.put("more")
        endings = ["reply", "escalate", "both", "dead", "reply", "reply", "reply", "reply"]
        outcomes = [answer(entry, op) for entry, op in zip(entries, endings, strict=True)]
        assert queue.finish(outcomes) == [b"ok"] * 8
    finally:
        rig.admin.config_set("maxmemory", 0)
    assert rig.admin.xlen(KEYS.requests) == 0
    assert len(rig.replies()) == 7


def test_a_worker_joins_and_keeps_its_leases_while_the_server_is_out_of_memory(real_rig: Rig) -> None:
    rig = real_rig
    rig.put(*"ab")
    rig.queue("before")
    rig.admin.config_set("maxmemory", 1)
    try:
        queue = rig.queue("w", lease_ms=600)
        loop = Loop(queue, Picky(""))
        loop._hand = entries = queue.lease()
        assert len(entries) == 2
        keeper = Keeper(loop, {})
        keeper.start()
        time.sleep(1)
        assert rig.queue("thief", lease_ms=600).lease() == []
        keeper.stop()
        assert queue.finish([answer(entry) for entry in entries]) == [b"ok"] * 2
    finally:
        rig.admin.config_set("maxmemory", 0)


@pytest.mark.parametrize("limits", [{"reply_entries_max": 3_000}, {"reply_bytes_max": 4 * 1024**2}], ids=str)
def test_what_waits_for_a_client_that_does_not_read_is_bounded(limits: dict[str, int], real_rig: Rig) -> None:
    """The oldest answers go, some at a time; how many is counted. Others' answers stay."""
    queue, sent = real_rig.queue("w", **limits), 8_000
    for _ in range(sent // 200):
        real_rig.put(*map(str, range(200)))
        entries = queue.lease()
        while len(entries) < 200:
            entries += queue.lease(block=False)
        outcomes = [answer(entry) for entry in entries]
        outcomes[0].reply_to = "another"
        assert queue.finish(outcomes) == [b"ok"] * 200
    waiting, dropped = real_rig.admin.xlen(REPLIES), real_rig.stats()["untold:dropped"]
    assert waiting + dropped == sent - sent // 200
    assert real_rig.admin.xlen(KEYS.replies("another")) == sent // 200
    look = UNREAD_BYTES // 3_500
    if "reply_entries_max" in limits:
        assert 0.8 * 3_000 <= waiting <= 3_000 + look
    else:
        assert 3 * 1024**2 < real_rig.admin.memory_usage(REPLIES) < 6.5 * 1024**2


def test_large_answers_that_wait_make_the_small_ones_no_larger(real_rig: Rig) -> None:
    """Of a stream that begins with a few answers to batches: nothing is near any limit."""
    queue = real_rig.queue("w")
    for turn in range(20):
        real_rig.put(*map(str, range(200)))
        entries = queue.lease()
        while len(entries) < 200:
            entries += queue.lease(block=False)
        outcomes = [answer(entry) for entry in entries]
        if turn == 0:
            for outcome in outcomes[:5]:
                outcome.payload = bytes(700_000)
        queue.finish(outcomes)
    assert "untold:dropped" not in real_rig.stats()
    assert real_rig.admin.xlen(REPLIES) == 4_000


def test_a_worker_for_which_nothing_came_is_known_until_it_is_gone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before Redis 7.2, where a read that finds nothing leaves no trace."""
    rig.queue("idle").rejoin()  # as the loop does at its start
    show_worker(rig.admin, "present", {"kind": "amn"})
    assert known(rig.admin, KEYS) == {"idle", "present"}
    monkeypatch.setattr(queue, "_GONE_MS", -1)
    rig.queue("new")
    assert known(rig.admin, KEYS) == {"present"}
