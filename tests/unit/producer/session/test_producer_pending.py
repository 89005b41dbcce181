"""The future of one answer."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from producer.session.pending import ThreadFuture


def test_every_thread_that_waits_gets_the_answer():
    waiting, got = ThreadFuture(), []
    threads = [threading.Thread(target=lambda: got.append(waiting.result(20))) for _ in range(5)]
    for thread in threads:
        thread.start()
    waiting.set_result(7)
    for thread in threads:
        thread.join()
    assert (got, waiting.done(), waiting.exception()) == ([7] * 5, True, None)


@pytest.mark.parametrize("timeout_s", [-1.0, 0.0, 0.001])
def test_who_waited_in_vain_may_wait_again(timeout_s: float):
    waiting = ThreadFuture()
    with pytest.raises(TimeoutError):
        waiting.result(timeout_s)
    assert not waiting.done()
    waiting.set_result("late")
    assert waiting.result(timeout_s) == "late"


@pytest.mark.parametrize(
    "second", [lambda it: it.set_result(2), lambda it: it.set_exception(KeyError("second"))]
)
def test_the_first_outcome_counts(second: Callable[[ThreadFuture], None]):
    answered, failed = ThreadFuture(), ThreadFuture()
    answered.set_result(1)
    failed.set_exception(ValueError("first"))
    second(answered)
    second(failed)
    assert (answered.result(), answered.exception()) == (1, None)
    with pytest.raises(ValueError, match="first"):
        failed.result()


def test_callbacks_are_called_once_each_whenever_they_come():
    waiting, called = ThreadFuture(), []
    waiting.add_done_callback(lambda it: called.append(("early", it.result())))
    assert called == []
    waiting.set_result(1)
    waiting.add_done_callback(lambda it: called.append(("late", it.result())))
    waiting.set_result(2)
    assert called == [("early", 1), ("late", 1)]
