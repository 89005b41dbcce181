"""Requests that the server lost: their slots are freed, and who waits is told."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest

from producer import Options, ProducerSettings, errors, wire
from producer.inflight import LOST_S, SWEEP_S, Inflight
from producer.messages import Failure, Reply
from producer.replies import ReplyCursor
from producer.requests import prepare

CONTEXT = np.eye(5, 768, dtype=np.float32)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def sent(inflight: Inflight, **options):
    item = prepare(CONTEXT, Options(**options), "client", ProducerSettings())
    return inflight.add(item, Future)[0]


def reply(request_id: str) -> bytes:
    return wire.encode_reply(Reply(id=request_id, vector=CONTEXT[0], confidence=1.0, margin=1.0))


def test_a_request_long_past_its_deadline_ends_by_name_and_frees_its_slot():
    clock = Clock()
    inflight = Inflight(limit=2, clock_s=clock)
    lost, waits = sent(inflight, deadline_ms=2_000), sent(inflight)
    cursor = ReplyCursor("replies", inflight)
    for seconds, ended in ((2.0, False), (LOST_S - 0.5, False), (SWEEP_S, True)):
        clock.now_s += seconds
        cursor.commands()
        assert lost.final.done() == ended
    with pytest.raises(errors.ResultTimeout, match="lost"):
        lost.final.result()
    assert (len(inflight), inflight.swept) == (1, 1)
    sent(inflight)
    # Without a deadline a request may wait as long as it likes.
    clock.now_s += 1e6
    inflight.sweep()
    assert not waits.final.done()


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
    assert inflight.answered("mine")
    assert inflight.kept("mine").id == "mine"


def test_it_is_looked_for_now_and_then():
    clock = Clock()
    inflight = Inflight(limit=2, clock_s=clock)
    clock.now_s += SWEEP_S
    inflight.sweep()
    lost = sent(inflight, deadline_ms=1.0)
    lost.lost_at_s = clock.now_s
    inflight.sweep()
    assert not lost.final.done()
    clock.now_s += SWEEP_S
    inflight.sweep()
    assert lost.final.done()
