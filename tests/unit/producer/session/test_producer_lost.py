"""Requests that the server lost: their slots are freed, and who waits is told."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest

from producer import Options, ProducerSettings, errors
from producer.keys import Keys
from producer.messages import Failure, Reply
from producer.protocol import wire
from producer.session.handle import Handle
from producer.session.inflight import LOST_S, OVERDUE_S, SWEEP_S, Inflight
from producer.session.losses import Losses
from producer.session.replies import READ_BYTES, READ_COUNT, ReplyCursor
from producer.session.requests import prepare
from producer.transport.connection import connect
from producer.transport.link import Link

STREAM = Keys().replies("client").encode()
CONTEXT = np.eye(5, 768, dtype=np.float32)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def sent(inflight: Inflight, **options):
    item = prepare(CONTEXT, Options(**options), "client", ProducerSettings())
    return inflight.add(item, partial(Handle, None))[0]


def reply(request_id: str) -> bytes:
    return wire.encode_reply(Reply(id=request_id, vector=CONTEXT[0], confidence=1.0, margin=1.0))


def test_an_answer_whose_time_was_not_noted_yet_is_taken_again_and_is_no_stray():
    inflight, noted = Inflight(limit=2), []

    class Times:
        def note(self, *about: Any) -> None:
            noted.append(about)
            if len(noted) == 1:
                raise KeyboardInterrupt

    inflight.times = Times()
    handle = sent(inflight)
    with pytest.raises(KeyboardInterrupt):
        inflight.on_reply(reply(handle.id))
    inflight.on_reply(reply(handle.id))
    assert (inflight.stray, len(noted)) == (0, 2)


def test_a_request_that_comes_between_counts_for_the_limit():
    inflight, between = Inflight(limit=1), []

    def make_handle(item: Any) -> Handle:
        between.append(sent(inflight))
        return Handle(None, item)

    with pytest.raises(errors.QueueFull):
        inflight.add(prepare(CONTEXT, Options(), "client", ProducerSettings()), make_handle)
    assert (len(inflight), len(between)) == (1, 1)


def test_a_request_long_past_its_deadline_ends_by_name_and_frees_its_slot():
    clock = Clock()
    inflight = Inflight(limit=2, clock_s=clock)
    lost, waits = sent(inflight, deadline_ms=2_000), sent(inflight)
    cursor = ReplyCursor(Keys(), "client", inflight)
    for seconds, ended in ((2.0, False), (LOST_S - 0.5, False), (SWEEP_S, True)):
        clock.now_s += seconds
        cursor.commands()
        assert lost.done() == ended
    with pytest.raises(errors.ResultTimeout, match="lost"):
        lost.result(0)
    assert (len(inflight), inflight.swept) == (1, 1)
    sent(inflight)
    # Without a deadline a request may wait as long as it likes.
    clock.now_s += 1e6
    inflight.sweep()
    assert not waits.done()


def said(turn: int, **spans: str) -> list[bytes]:
    """Where the streams stand: `p2="1-0 9-0"` for place 2; the others are empty."""
    fields = {b"turn": b"%d" % turn, **{b"%d" % place: b"" for place in range(1, 6)}}
    fields |= {name[1:].encode(): span.encode() for name, span in spans.items()}
    return [word for pair in fields.items() for word in pair]


class Followed:
    """One request that got in, and waits for long."""

    def __init__(self, **options) -> None:
        self.clock = Clock()
        self.inflight = Inflight(limit=9, clock_s=self.clock)
        self.pending = sent(self.inflight, **options)
        self.pending.got_in_at_s = self.clock.now_s
        self.losses = Losses(self.inflight)

    def looks(self, *each: list[bytes]) -> list[bool]:
        found = []
        for fields in each:
            self.clock.now_s += OVERDUE_S
            self.inflight.sweep()
            found.append(self.losses.note(fields))
        return found


def test_a_request_is_over_when_all_that_was_in_its_stream_and_in_the_fallbacks_has_passed():
    followed = Followed()
    assert followed.looks(
        said(1),  # said before we looked: it may be from before the submit
        said(2, p2="5-0 9-0"),
        said(3, p2="9-0 20-0"),  # it may be the ninth
        said(4, p2="9-1 30-0", p4="7-0 40-1"),  # passed; it may have been escalated
        said(5, p4="40-1 50-0"),
        said(6, p4="40-2 50-0", p5="1-0 1-0"),
        said(7, p5="1-0 2-0"),
        said(8, p1="1-0 9-9"),  # another level says nothing of it
    ) == [False] * 7 + [True]
    followed.losses.end_lost()
    with pytest.raises(errors.RequestLost, match="submit it again") as caught:
        followed.pending.result(0)
    assert (caught.value.code, caught.value.retryable) == ("request_lost", True)
    assert (len(followed.inflight), followed.inflight.swept) == (0, 1)


def test_nothing_is_over_while_nobody_says_anything_new():
    followed = Followed()
    assert followed.looks(said(1), said(1), said(1), {}, {}, []) == [False] * 6
    assert followed.looks(said(1)) == [True]  # said since: there was nothing


def test_what_cannot_be_read_says_nothing():
    followed = Followed()
    odd = [
        None,
        7,
        RuntimeError(),
        {b"turn": b"x"},
        {b"turn": b"9", b"2": b"junk"},
        [b"turn"],
        [b"turn", b"7", b"2"],
    ]
    assert followed.looks(said(1), *odd, said(1)) == [False] * 9
    assert followed.looks(said(2)) == [True]


def test_a_server_that_went_back_is_looked_at_anew():
    followed = Followed()
    assert followed.looks(said(5), said(6, p2="5-0 9-0"), said(2), said(3, p2="1-0 4-0")) == [False] * 4
    assert followed.looks(said(4, p2="4-1 5-0")) == [True]


def test_an_id_of_the_callers_may_wait_at_any_level():
    followed = Followed(request_id="mine", priority="high")
    assert followed.looks(said(1), said(2, p3="1-0 1-0"), said(3, p3="1-0 1-0")) == [False] * 3
    assert followed.looks(said(4)) == [True]


def test_a_request_that_did_not_get_in_yet_is_not_lost():
    followed = Followed()
    followed.pending.got_in_at_s = math.inf
    assert followed.looks(said(1), said(2), said(3)) == [False] * 3


def test_an_answer_that_is_there_is_taken_before_anything_is_called_lost():
    """Also one that lies before what was read last: the server's clock went back, and its memory with it."""
    followed = Followed()
    cursor = ReplyCursor(Keys(), "client", followed.inflight)
    spent = [[b"%d-0" % number, [b"reply", reply(f"another {number}")]] for number in range(5, 7)]
    for fields, entry in zip((said(1), said(2)), spent, strict=True):
        followed.clock.now_s += OVERDUE_S
        assert cursor.commands()[0] == ("HGETALL", Keys().standing)
        cursor.take([fields, [[STREAM, [entry]]]])
    assert cursor.commands()[-1][-1] == b"0-0"
    cursor.take([[[STREAM, [[b"1-0", [b"reply", reply(followed.pending.id)]], *spent]]]])
    assert followed.pending.result(0).id == followed.pending.id
    assert followed.inflight.stray == 2  # what was read twice counts once


@pytest.mark.parametrize(
    "answer",
    [
        7,
        b"OK",
        [b"x"],
        [[b"x", []]],
        [[b"other", [[b"9-0", []]]]],
        [[STREAM, [[b"5-0", [b"reply", b""]]]]],
        [[]],
    ],
    ids=str,
)
def test_answers_out_of_step_are_noticed_and_change_nothing(answer):
    inflight = Inflight(limit=2)
    cursor = ReplyCursor(Keys(), "client", inflight)
    waits = sent(inflight)
    cursor.take([[[STREAM, [[b"5-0", [b"reply", reply("another")]]]]]])
    with pytest.raises(errors.ServerUnavailable, match="out of step"):
        cursor.take([answer])
    cursor.take([[[STREAM, [[b"6-0", [b"reply", reply(waits.id)]]]]]])
    assert waits.result(0).id == waits.id


def test_an_answer_that_comes_after_all_is_no_second_one():
    clock = Clock()
    inflight = Inflight(limit=2, clock_s=clock)
    lost = sent(inflight, deadline_ms=1.0)
    clock.now_s += 2 * LOST_S
    inflight.sweep()
    failure = Failure(id=lost.id, code="deadline_exceeded", message="late")
    inflight.on_reply(wire.encode_failure(failure))
    assert inflight.stray == 0
    inflight.on_reply(reply("another"))
    assert inflight.stray == 1


def test_the_late_answer_to_a_named_request_is_that_of_its_repeat():
    clock = Clock()
    inflight = Inflight(limit=2, clock_s=clock)
    sent(inflight, deadline_ms=1.0, request_id="mine")
    clock.now_s += 2 * LOST_S
    inflight.sweep()
    inflight.on_reply(reply("mine"))
    assert sent(inflight, request_id="mine").result(0).id == "mine"
    with pytest.raises(errors.DuplicateRequest):  # it is handed out once
        sent(inflight, request_id="mine").result(0)


def test_it_is_looked_for_now_and_then():
    clock = Clock()
    inflight = Inflight(limit=2, clock_s=clock)
    cursor = ReplyCursor(Keys(), "client", inflight)
    clock.now_s += SWEEP_S
    cursor.commands()
    lost = sent(inflight, deadline_ms=1.0)
    lost.lost_at_s = clock.now_s
    cursor.commands()
    assert not lost.done()
    clock.now_s += SWEEP_S
    cursor.commands()
    assert lost.done()


def test_a_call_that_goes_on_beside_its_successor_proves_no_loss():
    """The successor has begun to read the whole stream, and the call ends a short read of its own."""
    followed, after = Followed(), []
    inflight, on_reply = followed.inflight, followed.inflight.on_reply
    left, mine = ReplyCursor(Keys(), "client", inflight), sent(inflight)

    def between(*entry: Any) -> None:
        after.append(left.anew())
        for fields in said(1), said(2):
            followed.clock.now_s += OVERDUE_S
            after[0].commands()
            after[0].take([fields, None])
        on_reply(*entry)

    inflight.on_reply = between
    left.take([[[STREAM, [[b"1-0", [b"reply", reply(mine.id)]]]]]])
    assert after[0]._over
    assert mine.done()
    assert not followed.pending.done()
    after[0].take([None])  # the whole stream, in which there is no answer
    assert followed.pending.done()


def test_what_was_taken_is_deleted_by_its_id_and_each_answer_is_given_once(monkeypatch: pytest.MonkeyPatch):
    """Also after a deletion whose answer was lost: then the entries come again."""
    monkeypatch.setattr("producer.session.replies.READ_COUNT", 4)
    inflight, heard = Inflight(limit=2), []
    inflight.on_reply = lambda payload, _: heard.append(payload)
    cursor = ReplyCursor(Keys(), "client", inflight)
    rows = [[b"9000-%d" % n, [b"reply", b"%d" % n + bytes(10_000)]] for n in range(1, 9)]
    cursor.take([[[STREAM, rows[:4]]]])
    deletion, read = cursor.commands()
    assert deletion[:2] == ("XDEL", cursor.stream)
    assert set(deletion[2:]) == {row[0] for row in rows[:4]}
    assert read[-1] == b"0-0"
    cursor.failed(ConnectionError("the answer was lost"))
    cursor.take([[[STREAM, rows[:1]]]])
    cursor.take([[[STREAM, rows[4:]]]])
    assert len(heard) == 8
    assert set(cursor.commands()[0][2:]) == {row[0] for row in rows}


def test_answers_of_a_stream_that_was_made_anew_are_read_and_never_deleted_unread(real_server: Any):
    """A flush makes the stream anew, and a server whose clock went back puts them before those of before."""
    admin, heard = real_server.admin, []
    inflight = Inflight(limit=2)
    inflight.on_reply = lambda payload, _: heard.append(payload)
    cursor = ReplyCursor(Keys(), "client", inflight)
    link = Link(connect(ProducerSettings(url=real_server.url), block_ms=500))

    def turn() -> None:
        cursor.take(link.each(cursor.commands()))

    def answers(first_ms: int, count: int) -> None:
        for n in range(count):
            admin.xadd(cursor.stream, {"reply": b"%d" % first_ms}, id=f"{first_ms + n}-0")

    answers(9_000, 3)
    turn()
    admin.delete(cursor.stream)
    answers(1_000, 2)
    for _ in range(5):
        turn()
    assert heard == [b"9000"] * 3 + [b"1000"] * 2
    assert admin.xlen(cursor.stream) == 0
    link.close()


def test_a_read_asks_for_fewer_answers_where_they_are_large_and_for_more_again():
    cursor, asked = ReplyCursor(Keys(), "client", Inflight(limit=2)), []
    for number, size in enumerate([1_000, 1_000_000, *[3_000] * 60], 1):
        asked.append(cursor.commands()[-1][2])
        cursor.take([0, [[STREAM, [[b"%d-0" % number, [b"reply", bytes(size)]]]]]])
    assert asked[:3] == [READ_COUNT, READ_COUNT, READ_BYTES // 1_000_000]
    assert asked[-1] == READ_COUNT


def test_a_read_of_two_large_answers_that_is_lost_is_repeated_for_one():
    cursor = ReplyCursor(Keys(), "client", Inflight(limit=2))
    cursor.commands()
    cursor.take([0, [[STREAM, [[b"1-0", [b"reply", bytes(1_000_000)]]]]]])
    assert cursor.commands()[-1][2] == 2
    cursor.failed(ConnectionError("cut off"))
    assert cursor.commands()[-1][2] == 1
