"""Whatever somebody else wrote to the keys of a queue, a request ends once, and a call ends whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
from rig import KEYS, REPLIES, Rig, answer

from producer import Options, Producer, ProducerSettings
from producer.errors import AuthenticationFailed, ServerUnavailable, StreamUnusable
from producer.keys import GROUP
from producer.messages import Failure
from producer.protocol import wire
from producer.session.requests import prepare
from producer.transport.connection import script_text
from workers.engine.outcomes import dead, served_fast
from workers.engine.queue import LeasedQueue, Outcome

LAST_ID = "18446744073709551615-18446744073709551615"
FAR_ID = "18446744073709551615-0"
MOST, LEAST = 2**63 - 1, -(2**63)
SIDES = (KEYS.shadow, KEYS.dead, KEYS.fallback, REPLIES)

#: What a hostile party, or a mistake, leaves behind.
DEEDS: dict[str, Callable[[redis.Redis], Any]] = {
    **{f"{key} is used up": lambda r, key=key: r.xadd(key, {"x": "y"}, id=LAST_ID) for key in SIDES},
    **{f"{key} is nearly used up": lambda r, key=key: r.xadd(key, {"x": "y"}, id=FAR_ID) for key in SIDES},
    **{f"{key} is a string": lambda r, key=key: r.set(key, "x") for key in (*SIDES, KEYS.stats)},
    **{
        f"{key} holds {what}": lambda r, key=key, what=what: r.set(key, what)
        for key in (KEYS.requests_bytes, KEYS.fallback_bytes)
        for what in (MOST, LEAST, "words", "1e400", "nan")
    },
    **{
        f"{key} is a hash": lambda r, key=key: [r.delete(key), r.hset(key, "a", "b")] for key in KEYS.counters
    },
    "stats overflow": lambda r: [
        r.hset(KEYS.stats, name, MOST) for name in ("answered", "dead", "accepted:normal")
    ],
    "seen is a hash": lambda r: [r.delete(KEYS.seen("a")), r.hset(KEYS.seen("a"), "a", "b")],
    "seen is nonsense": lambda r: r.set(KEYS.seen("a"), "client - 9 \0"),
}
OPS = ("escalate", "both", "reply", "reply", "reply", "dead")


def ended(queue: LeasedQueue, entries: list[Any]) -> list[Outcome]:
    """One outcome of each kind, as workers make them."""
    extras: list[dict[str, Any]] = [
        *({} for _ in range(3)),
        {"sample_key": "20 key"},
        {"truth_key": "key", "truth": b"truth"},
        {"counters": "dead,dead:test", "reason": "test", "message": "a test"},
    ]
    pairs = zip(entries, OPS, extras, strict=True)
    outcomes = [answer(entry, op, **extra) for entry, op, extra in pairs]
    for outcome in outcomes[:2]:
        outcome.payload = wire.encode_reply(replace(wire.decode_reply(outcome.payload), provisional=True))
    return outcomes


@pytest.mark.parametrize("deed", DEEDS)
def test_whatever_was_written_elsewhere_a_request_ends_once(deed: str, real_rig: Rig) -> None:
    rig, names = real_rig, list("abcdef")
    queue = rig.queue("w")
    for name in names:
        rig.put(name)
        rig.admin.set(
            KEYS.seen(name), f"client - 2 {rig.admin.xrevrange(KEYS.requests, count=1)[0][0].decode()}"
        )
    entries = queue.lease()
    while len(entries) < 6:
        entries += queue.lease(block=False)
    DEEDS[deed](rig.admin)
    outcomes = ended(queue, entries)
    statuses = queue.finish(outcomes)
    assert set(statuses) <= {b"ok", b"full"}
    full = [outcome for outcome, status in zip(outcomes, statuses, strict=True) if status == b"full"]
    if full:  # what could not be moved on is answered
        assert queue.finish([served_fast(outcome) for outcome in full]) == [b"ok"] * len(full)
    assert queue.finish(outcomes) == [b"lost"] * 6
    assert rig.admin.xlen(KEYS.requests) == 0
    assert rig.admin.xpending(KEYS.requests, GROUP)["pending"] == 0
    assert not rig.admin.exists(KEYS.requests_bytes)
    if deed in (f"{REPLIES} is used up", f"{REPLIES} is a string"):
        assert rig.stats()["untold:reply"] == 5  # one moved on without a word
        return
    finals = Counter(reply.id for reply in told(rig) if isinstance(reply, Failure) or not reply.provisional)
    moved = 0 if full else len([row for row in rig.admin.xrange(KEYS.fallback) if b"request" in row[1]])
    assert sum(finals.values()) + moved == 6
    assert set(finals.values()) == {1}


def told(rig: Rig) -> list[Any]:
    rows = rig.admin.xrange(REPLIES)
    return [wire.decode_reply(fields[b"reply"]) for _, fields in rows if b"reply" in fields]


def test_a_level_that_became_no_stream_repeats_nobody_s_end(real_rig: Rig) -> None:
    """What was held of it is gone; what was held of the other levels ends once."""
    queue = real_rig.queue("w")
    for priority in ("high", "normal"):
        real_rig.put(priority, priority=priority)
    entries = queue.lease()
    while len(entries) < 2:
        entries += queue.lease(block=False)
    real_rig.admin.delete(KEYS.high)
    real_rig.admin.set(KEYS.high, "x")
    outcomes = [answer(entry, "reply") for entry in entries]
    assert [entry.place for entry in entries] == [1, 2]
    assert queue.finish(outcomes) == [b"lost", b"ok"]
    assert real_rig.admin.xpending(KEYS.requests, GROUP)["pending"] == 0
    assert [reply.id for reply in real_rig.replies()] == ["normal"]


@pytest.mark.parametrize("key", [KEYS.shadow, KEYS.dead, KEYS.fallback])
@pytest.mark.parametrize("deed", ["is used up", "is a string"])
def test_what_could_not_be_told_is_counted(key: str, deed: str, real_rig: Rig) -> None:
    queue, names = real_rig.queue("w"), list("abcdef")
    real_rig.put(*names)
    entries = queue.lease()
    while len(entries) < 6:
        entries += queue.lease(block=False)
    DEEDS[f"{key} {deed}"](real_rig.admin)
    queue.finish(ended(queue, entries))
    what = {KEYS.shadow: ("sample", "truth"), KEYS.dead: ("letter",), KEYS.fallback: ("escalation",)}[key]
    untold = {name for name in real_rig.stats() if name.startswith("untold:")}
    assert untold == {f"untold:{one}" for one in what}


@pytest.fixture
def denied(real_server: Any) -> Iterator[Callable[[str], None]]:
    """Takes rights from everybody, until the test is over."""
    admin = real_server.admin
    yield lambda rules: admin.execute_command("ACL", "SETUSER", "default", *rules.split())
    admin.execute_command("ACL", "SETUSER", "default", "+@all")


def test_no_entry_ends_unanswered_for_want_of_rights(real_rig: Rig, denied: Callable[[str], None]) -> None:
    """The server's word on us may pass, where that on a key does not: nothing is taken for told."""
    queue = real_rig.queue("w")
    real_rig.put("a", "b")
    entries = queue.lease()
    endings = [answer(entries[0], "reply"), answer(entries[1], "escalate")]
    denied("-xadd")
    for outcomes in (endings, endings[::-1]):
        with pytest.raises(AuthenticationFailed):
            queue.finish(outcomes)
    assert real_rig.admin.xpending(KEYS.requests, GROUP)["pending"] == 2
    denied("+xadd")
    assert queue.finish(endings) == [b"ok"] * 2
    assert [reply.id for reply in real_rig.replies()] == ["a"]
    assert not [name for name in real_rig.stats() if name.startswith("untold")]


def test_a_server_that_takes_nothing_for_a_moment_changes_no_end(real_rig: Rig) -> None:
    """An escalation does not find the next stream full, and no answer is dropped."""
    queue = real_rig.queue("w")
    real_rig.put("a", "b")
    endings = [answer(entry, op) for entry, op in zip(queue.lease(), ("escalate", "reply"), strict=True)]
    real_rig.admin.replicaof("127.0.0.1", 1)
    try:
        for outcomes in (endings, endings[:1], endings[1:]):
            with pytest.raises(ServerUnavailable, match="read only"):
                queue.finish(outcomes)
    finally:
        real_rig.admin.replicaof("no", "one")
    assert queue.finish(endings) == [b"ok"] * 2
    assert real_rig.admin.xlen(KEYS.fallback) == 1


def test_an_id_of_which_nothing_can_be_known_is_not_taken_for_a_new_one(
    real_server: Any, context: Any, denied: Callable[[str], None]
) -> None:
    with Producer(real_server.url) as producer:
        producer.submit(context)
        channel = producer.channels[0]
        twice = prepare(context, Options(request_id="twice"), channel.client_id, channel.settings)
        call = channel.submit_call([twice])
        submit = real_server.admin.register_script(script_text("producer", "submit"))
        assert submit(*call) == [1]
        denied("-get")
        with pytest.raises(redis.ResponseError, match=r"can't run this command|no permissions"):
            submit(*call)
    assert real_server.admin.xlen(KEYS.requests) == 2


def test_a_request_that_may_be_leased_is_not_taken_back(
    real_rig: Rig, context: Any, denied: Callable[[str], None]
) -> None:
    queue = real_rig.queue("w")
    with Producer(real_rig.url) as producer:
        handle = producer.submit(context)
        (entry,) = queue.lease()
        denied("-xpending")
        with pytest.raises(AuthenticationFailed):
            handle.cancel()
        denied("+xpending")
        assert queue.finish([answer(entry)]) == [b"ok"]
        assert handle.result().id == handle.id


def test_a_counter_that_is_wrong_heals(real_rig: Rig) -> None:
    queue = real_rig.queue("w", batch_max=1)
    for wrong in (LEAST, MOST - 2**30, "words"):
        real_rig.put("a", "b")
        real_rig.admin.set(KEYS.requests_bytes, wrong)
        (entry,) = queue.lease()
        assert queue.finish([answer(entry)]) == [b"ok"]
        assert real_rig.admin.get(KEYS.requests_bytes) == b"0"
        (entry,) = queue.lease()
        assert queue.finish([answer(entry)]) == [b"ok"]
        assert not real_rig.admin.exists(KEYS.requests_bytes)


@pytest.mark.parametrize("deed", ["is used up", "is a string"])
def test_a_call_that_is_refused_in_part_says_what_got_in(deed: str, real_server: Any, contexts: Any) -> None:
    """Of a call to two levels, one of which takes nothing: the other's requests are in, and named."""
    low = {
        "is used up": lambda r: r.xadd(KEYS.low, {"x": "y"}, id=LAST_ID),
        "is a string": lambda r: r.set(KEYS.low, "x"),
    }
    low[deed](real_server.admin)
    with Producer(real_server.url) as producer:
        options = [Options(priority=priority) for priority in ("normal", "low", "normal", "low", "high")]
        with pytest.raises(StreamUnusable, match="doctor --repair") as caught:
            producer.submit_many(contexts(5), options=options)
        assert len(caught.value.accepted) == 3
        assert producer.in_flight == 3
        assert not caught.value.retryable
    assert real_server.admin.xlen(KEYS.requests) == 2
    assert real_server.admin.xlen(KEYS.high) == 1
    assert real_server.admin.hget(KEYS.stats, "refused:low") == b"2"  # so that somebody is woken up


@pytest.mark.parametrize("wrong", [MOST, LEAST, "words"])
def test_an_empty_queue_takes_work_whatever_its_counter_says(
    wrong: Any, real_server: Any, context: Any
) -> None:
    real_server.admin.set(KEYS.requests_bytes, wrong)
    real_server.admin.set(KEYS.stats, "no hash")
    with Producer(settings=ProducerSettings(url=real_server.url, bytes_max=100_000)) as producer:
        producer.submit(context)
    assert real_server.admin.xlen(KEYS.requests) == 1


@pytest.mark.parametrize("wrong", [MOST, MOST - 2**30, "9" * 40])
def test_no_counter_closes_a_queue_in_which_little_waits(wrong: Any, real_server: Any, contexts: Any) -> None:
    with Producer(real_server.url) as producer:
        producer.submit(contexts(1)[0])
        real_server.admin.set(KEYS.requests_bytes, wrong)
        producer.submit_many(contexts(8))
    assert real_server.admin.xlen(KEYS.requests) == 9


def test_a_request_that_was_taken_back_is_gone_whatever_its_counter_says(
    real_server: Any, context: Any
) -> None:
    with Producer(real_server.url) as producer:
        handle = producer.submit(context)
        real_server.admin.set(KEYS.requests_bytes, "words")
        real_server.admin.set(KEYS.stats, "no hash")
        assert handle.cancel() is True
        assert real_server.admin.xlen(KEYS.requests) == 0
        assert producer.cancel(handle.id) is True


def test_a_letter_that_no_stream_takes_stays_a_letter(real_server: Any) -> None:
    admin = real_server.admin
    letter = admin.xadd(KEYS.dead, {"reason": "test"})
    admin.xadd(KEYS.requests, {"x": "y"}, id=LAST_ID)
    replay = admin.register_script(script_text("ops", "requeue"))
    names = [KEYS.dead, *KEYS.levels, *KEYS.counters[:3], KEYS.stats]
    assert replay(keys=names, args=[10, 1000, letter, 2, "again", b"payload"]) == [b"refused"]
    assert admin.xlen(KEYS.dead) == 1


@pytest.mark.parametrize("nonsense", ["{0} - 9 1-0", "{0} - 2 no-id", "{0} - 1 1-0", "{0}", "{0} \0 5 - -"])
def test_nonsense_under_an_id_takes_nothing_back(nonsense: str, real_server: Any, context: Any) -> None:
    real_server.admin.set(KEYS.high, "no stream")
    with Producer(real_server.url) as producer:
        handle = producer.submit(context)
        real_server.admin.set(KEYS.seen(handle.id), nonsense.format(producer.channels[0].note))
        assert handle.cancel() is False
    assert real_server.admin.xlen(KEYS.requests) == 1


def test_entries_that_name_nobody_put_no_other_letter_out(real_rig: Rig) -> None:
    """They take half of the room; one of four megabytes, which takes the room of 64, none at all."""
    rig, queue = real_rig, real_rig.queue("w", dead_entries_max=128)
    rig.put(*"abcd")
    known = queue.lease()
    while len(known) < 4:
        known += queue.lease(block=False)
    queue.finish([answer(entry, "dead", reason="over_delivered", message="") for entry in known])
    for garbage in (b"\0" * 4 * 1024**2, *[b"garbage"] * 400):
        rig.put_bytes(garbage)
    ended = 0
    while entries := queue.lease(block=False):
        outcomes = [dead(entry, None, "undecodable", "no message") for entry in entries]
        assert queue.finish(outcomes) == [b"ok"] * len(entries)
        ended += len(entries)
    assert ended == 401
    letters = [fields for _, fields in rig.admin.xrange(KEYS.dead)]
    assert [letter[b"reason"] for letter in letters[:4]] == [b"over_delivered"] * 4
    assert len(letters) == 64
    assert rig.stats()["untold:letter"] == 4 + 401 - 64
    assert rig.stats()["dead:undecodable"] == 401
