"""The wait for one answer."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from producer import Handle, Options, ProducerSettings, errors
from producer.messages import Reply
from producer.session.requests import prepare

CONTEXT = np.eye(5, 768, dtype=np.float32)


def handle(on_end=None, **options) -> Handle:
    return Handle(None, prepare(CONTEXT, Options(**options), "client", ProducerSettings()), on_end)


def reply(**fields) -> Reply:
    return Reply(id="a", vector=CONTEXT[0], confidence=1.0, margin=1.0, **fields)


def test_every_thread_that_waits_gets_the_answer():
    waiting, answer, got = handle(), reply(), []
    threads = [threading.Thread(target=lambda: got.append(waiting.result(20_000))) for _ in range(5)]
    for thread in threads:
        thread.start()
    waiting.settle(answer)
    for thread in threads:
        thread.join()
    assert (got, waiting.done()) == ([answer] * 5, True)


@pytest.mark.parametrize("timeout_ms", [-1.0, 0.0, 1.0])
def test_who_waited_in_vain_may_wait_again(timeout_ms: float):
    waiting, answer = handle(), reply()
    with pytest.raises(errors.ResultTimeout):
        waiting.result(timeout_ms)
    assert not waiting.done()
    waiting.settle(answer)
    assert waiting.result(timeout_ms) is answer


@pytest.mark.parametrize("provisional", [False, True])
def test_who_sees_that_it_is_done_gets_the_answer_at_once_however_far_the_reader_has_come(provisional: bool):
    """Another thread may run at each call of the one that settles a handle."""
    seen = []

    class Watched(Handle):
        __slots__ = ()

        def _open(self, gate):
            for act in (lambda: None, gate.release):
                act()
                seen.append(self.done() and (self.result(0), self.first(0)))
                assert self.first_latency_ms == self.latency_ms

    outgoing = prepare(CONTEXT, Options(provisional=provisional), "client", ProducerSettings())
    waiting, answer = Watched(None, outgoing), reply()
    waiting.settle(answer)
    assert seen == [(answer, answer)] * (4 if provisional else 2)


def test_a_wait_that_was_interrupted_before_it_let_the_next_one_pass_costs_nobody_the_answer():
    waiting, answer = handle(), reply()
    waiting.settle(answer)
    assert waiting._final_gate.acquire(blocking=False)  # and never released
    assert (waiting.result(10_000), waiting.first(0)) == (answer, answer)


def test_a_failure_is_raised_at_each_wait():
    failed = handle()
    failed.settle(errors.InferenceFailed("no"))
    for wait in (failed.result, failed.first, failed.result):
        with pytest.raises(errors.InferenceFailed, match="no"):
            wait(0)


def test_the_first_answer_and_the_final_one_are_told_apart_by_what_was_asked_for():
    both, one = handle(provisional=True), handle()
    early, late = reply(provisional=True), reply()
    both.settle(early)
    assert (both.first(0), both.done(), both.latency_ms) == (early, False, None)
    with pytest.raises(errors.ResultTimeout):
        both.result(0)
    both.settle(late)
    one.settle(late)
    assert (both.first(0), both.result(0), one.first(0)) == (early, late, late)
    assert both.first_latency_ms <= both.latency_ms


def test_the_end_is_told_once_and_a_provisional_answer_is_none():
    told = []
    waiting = handle(lambda ended, outcome: told.append((ended, outcome)), provisional=True)
    waiting.settle(reply(provisional=True))
    assert told == []
    answer = reply()
    waiting.settle(answer)
    assert told == [(waiting, answer)]
