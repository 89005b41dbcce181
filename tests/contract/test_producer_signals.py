"""A signal may come anywhere in a call that reads its own answer: it harms no other call, and none after it.

Python runs signal handlers where a function begins and where a call into C returns. There, `at` does in the
calling thread what a handler would do: for each such place in turn.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from echo import EchoWorker
from servers import Server
from test_producer_lead import Call, leading
from waiting import wait_until

from producer import Options, Producer, ProducerSettings
from producer.errors import Cancelled, ProducerClosed, WireError
from producer.messages import Reply
from producer.protocol.wire import encode_reply
from producer.session import threads
from producer.session.handle import Handle
from producer.session.inflight import Inflight
from producer.session.replies import ReplyCursor
from producer.session.requests import prepare


class Alarm(Exception):
    """What a user's handler raises."""


@pytest.fixture
def valkey(make_server: Callable[..., Server]) -> Server:
    return make_server("valkey")


class Places:
    """Counts the places of the calling thread, and acts at one of them."""

    def __init__(self, number: int, act: Callable[[], object]) -> None:
        self.left, self._act = number, act

    def __enter__(self) -> None:
        sys.setprofile(self._note)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: Any, event: str, arg: Any) -> None:
        if event in ("call", "c_return") and frame.f_code is not Places.__exit__.__code__:
            self.left -= 1
            if self.left == 0:
                self._act()


def places_of(
    predict: Callable[[], Any], act: Callable[[], object], step: int = 1
) -> Iterator[tuple[int, Any]]:
    """The outcomes of calls that meet `act` at their first place, at the one `step` places on, and so on."""
    number, left = 1 - step, 0
    while left <= 0:
        number += step
        places = Places(number, act)
        try:
            with places:
                outcome = predict()
        except BaseException as error:
            outcome = error
        finally:
            sys.setprofile(None)
        left = places.left
        yield number, outcome


def follower(producer: Producer, context: Any) -> Call:
    """Another thread's call, whose request is in flight."""
    before, call = producer.in_flight, Call(lambda: producer.predict(context, timeout_ms=5_000))
    give_up_at_s = time.monotonic() + 0.02
    while call.is_alive() and producer.in_flight == before and time.monotonic() < give_up_at_s:
        time.sleep(0)
    return call


def rests(producer: Producer, context: Any) -> None:
    """Waits until a call would read its own answer again."""
    reader: Any = producer.channels[0].reader
    wait_until(lambda: producer.predict(context) is not None and reader._resting and not producer.in_flight)


@pytest.mark.parametrize("others", [False, True])
def test_an_interrupt_anywhere_harms_no_other_call_and_none_after_it(
    valkey: Server, context: Any, others: bool
) -> None:
    kinds, calls, raised = (KeyboardInterrupt, SystemExit, Alarm, TimeoutError), [], 0

    def act() -> None:
        if others:
            calls.append(follower(producer, context))
        raise kinds[raised % 4]

    with leading(valkey.url, context) as (producer, _):
        for number, outcome in places_of(lambda: producer.predict(context), act, 3 if others else 2):
            if isinstance(outcome, kinds):
                assert type(outcome) is kinds[raised % 4]
                raised += 1
            else:
                assert isinstance(outcome, Reply), (number, outcome)
            for call in calls:
                assert isinstance(call.ended(), Reply), (number, call.outcome)
            calls.clear()
            for _ in range(3):
                assert producer.predict(context, timeout_ms=5_000).served_by, number
            rests(producer, context)
        assert raised > (50 if others else 75)
        began_s = time.monotonic()
        producer.close()
        assert time.monotonic() - began_s < 3


@pytest.mark.parametrize("verb", ["predict", "predict, block", "submit"])
def test_a_handler_anywhere_may_use_the_producer_whose_call_it_interrupts(
    valkey: Server, context: Any, verb: str
) -> None:
    found: list[Any] = []

    def act() -> None:
        try:
            if verb == "submit":
                found.append(producer.submit(context).result(3_000))
            else:
                found.append(producer.predict(context, timeout_ms=3_000, block="block" in verb))
        except BaseException as error:
            found.append(error)

    with leading(valkey.url, context) as (producer, _):
        for number, outcome in places_of(lambda: producer.predict(context, timeout_ms=3_000), act, 3):
            assert isinstance(outcome, Reply), (number, outcome)
            assert all(isinstance(one, Reply) for one in found), (number, found)
            found.clear()
            rests(producer, context)
        assert number > 150


def test_a_handler_anywhere_in_the_call_that_starts_the_producer_may_use_it(
    valkey: Server, context: Any
) -> None:
    with EchoWorker(valkey.url):
        number, left = 1, 0
        while left <= 0:
            with ExitStack() as undo:
                producer = Producer(valkey.url)
                undo.callback(producer.close)
                found: list[Any] = []

                def act(producer: Producer = producer, found: list[Any] = found) -> None:
                    found.append(producer.predict(context, timeout_ms=3_000))

                places = Places(number, act)
                try:
                    with places:
                        producer.start()
                finally:
                    sys.setprofile(None)
                assert all(isinstance(one, Reply) for one in found), (number, found)
                assert producer.predict(context, timeout_ms=3_000).served_by, number
                assert sum(one.name == "amn-replies" for one in threading.enumerate()) == 1, number
            number, left = number + 9, places.left
        assert number > 300
        assert number > 400


def test_a_handler_anywhere_may_close_the_producer_whose_call_it_interrupts(
    valkey: Server, context: Any
) -> None:
    number, left = 1, 0
    while left <= 0:
        with leading(valkey.url, context) as (producer, _):
            took_s: list[float] = []

            def act(producer: Producer = producer, took_s: list[float] = took_s) -> None:
                began_s = time.monotonic()
                producer.close()
                took_s.append(time.monotonic() - began_s)

            places = Places(number, act)
            try:
                with places:
                    outcome: Any = producer.predict(context, timeout_ms=3_000)
            except ProducerClosed as error:
                outcome = error
            finally:
                sys.setprofile(None)
            assert outcome, number
            assert not took_s or took_s[0] < 3, (number, took_s)
        number, left = number + 15, places.left
    assert number > 150


@pytest.mark.parametrize("error", [TimeoutError, Alarm])
def test_what_an_alarm_raises_leaves_a_call_that_reads_at_once(
    valkey: Server, context: Any, error: type[Exception]
) -> None:
    """The driver takes a TimeoutError for one of its socket, where it waits itself."""

    def ring(*_: object) -> None:
        raise error

    with leading(valkey.url, context) as (producer, answers):
        before = signal.signal(signal.SIGALRM, ring)
        try:
            for deadline in ({}, {"deadline_ms": 4_000}):
                began_s = time.monotonic()
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                with pytest.raises(error):
                    producer.predict(context, lane="code-api", **deadline)
                assert time.monotonic() - began_s < 3
                answers.gate.set()
                for _ in range(3):
                    assert producer.predict(context, timeout_ms=5_000).served_by
                answers.gate.clear()
                rests(producer, context)
        finally:
            signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("error", [TimeoutError, ConnectionError, WireError, Alarm])
def test_what_an_alarm_raises_leaves_a_call_whose_submit_a_server_keeps_waiting(
    valkey: Server, context: Any, error: type[Exception]
) -> None:
    def ring(*_: object) -> None:
        raise error("of the handler")

    with leading(valkey.url, context) as (producer, _):
        before = signal.signal(signal.SIGALRM, ring)
        valkey.signal(signal.SIGSTOP)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            began_s = time.monotonic()
            with pytest.raises(error, match="of the handler"):
                producer.predict(context, timeout_ms=8_000)
            assert time.monotonic() - began_s < 4
        finally:
            signal.signal(signal.SIGALRM, before)
            valkey.signal(signal.SIGCONT)
        rests(producer, context)


def test_a_handler_that_stands_still_stops_only_its_own_thread(valkey: Server, context: Any) -> None:
    with leading(valkey.url, context) as (producer, answers):
        found: list[Any] = []

        def stand(*_: object) -> None:
            calls = [follower(producer, context) for _ in range(3)]
            found.extend(call.ended() for call in calls)

        before = signal.signal(signal.SIGALRM, stand)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            threading.Timer(0.2, answers.gate.set).start()
            assert producer.predict(context, lane="code-api").served_by
        finally:
            signal.signal(signal.SIGALRM, before)
        assert len(found) == 3
        assert all(isinstance(one, Reply) for one in found)


@pytest.mark.parametrize("handler", ["submits", "stands still"])
def test_a_call_that_lost_its_turn_has_a_cursor_of_its_own(
    valkey: Server, context: Any, monkeypatch: pytest.MonkeyPatch, handler: str
) -> None:
    """It goes on in the midst of what it read, while the one that took its turn reads."""
    monkeypatch.setattr(threads, "_REST_S", 0.02)
    with leading(valkey.url, context) as (producer, _):
        reader: Any = producer.channels[0].reader
        rests(producer, context)
        turn, take, cursors = reader._turn, ReplyCursor.take, []

        def interrupted(cursor: Any, answers: Any, own: bool = False) -> None:
            if own and not cursors:
                cursors.append(cursor)
                if handler == "submits":
                    assert producer.submit(context).result(3_000).served_by
                else:
                    wait_until(lambda: reader._turn is not turn)
                    wait_until(lambda: reader._cursor is not cursor)
                cursors.append(reader._cursor)
            take(cursor, answers, own)

        monkeypatch.setattr(ReplyCursor, "take", interrupted)
        assert producer.predict(context, timeout_ms=5_000).served_by
        assert len(set(map(id, cursors))) == 2


def test_a_handler_anywhere_in_the_table_keeps_no_answer_from_another_thread(context: Any) -> None:
    now_s = 0.0
    table = Inflight(1_000, clock_s=lambda: now_s)
    ended: list[bool] = []

    def added(**options: Any) -> Handle:
        one = prepare(context, Options(**options), "client", ProducerSettings())
        return table.add(one, partial(Handle, None))[0]

    def taken(one: Handle) -> None:
        table.on_reply(encode_reply(Reply(id=one.id, vector=context[0], confidence=1.0, margin=1.0)))

    def steps() -> None:
        nonlocal now_s
        first, lost, cancelled = added(), added(deadline_ms=1), added()
        taken(first)
        taken(first)  # a stray
        table.settle(cancelled.id, Cancelled("taken back"))
        now_s += 100
        table.sweep()
        assert lost.done()

    def act() -> None:
        call = Call(lambda: taken(other))
        call.join(1)
        ended.append(not call.is_alive())

    other = added()
    for number, outcome in places_of(steps, act, 2):
        assert outcome is None, (number, outcome)
        assert all(ended), number
        assert len(table) == table._contexts == 1 - len(ended), number
        other = added() if ended else other
        ended.clear()


def test_a_cancel_of_another_thread_ends_the_wait_at_once(valkey: Server, context: Any) -> None:
    with leading(valkey.url, context) as (producer, answers):
        [channel] = producer.channels
        channel._cancel_script = Canned()  # type: ignore[attr-defined]
        took_s = []
        for name in ("one", "two", "three"):
            answers.gate.set()
            rests(producer, context)
            answers.gate.clear()
            call = Call(lambda: producer.predict(context, lane="code-api", request_id=name))  # noqa: B023
            wait_until(lambda: channel.reader._led == name)  # noqa: B023
            began_s = time.monotonic()
            assert producer.cancel(name)
            assert isinstance(call.ended(), Cancelled)
            took_s.append(time.monotonic() - began_s)
        assert min(took_s) < 0.2


def test_a_cancel_between_the_submit_and_the_read_ends_the_wait_at_once(
    valkey: Server, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with leading(valkey.url, context) as (producer, _):
        [channel] = producer.channels
        channel._cancel_script = Canned()  # type: ignore[attr-defined]
        limit_ms = Handle._limit_ms

        def cancelled(handle: Handle, timeout_ms: float | None) -> float:
            Call(handle.cancel).ended()
            return limit_ms(handle, timeout_ms)

        took_s = []
        for _ in range(3):  # a busy machine may stop us for a while
            rests(producer, context)
            with monkeypatch.context() as patched:
                patched.setattr(Handle, "_limit_ms", cancelled)
                began_s = time.monotonic()
                with pytest.raises(Cancelled):
                    producer.predict(context, lane="code-api")
                took_s.append(time.monotonic() - began_s)
        assert min(took_s) < 0.3


def test_a_cancel_of_a_request_whose_caller_was_interrupted_ends_no_other_read(
    valkey: Server, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with leading(valkey.url, context) as (producer, answers):
        reader: Any = producer.channels[0].reader

        def ring(*_: object) -> None:
            raise Alarm

        before = signal.signal(signal.SIGALRM, ring)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Alarm):
                producer.predict(context, lane="code-api", request_id="left")
        finally:
            signal.signal(signal.SIGALRM, before)
        cut: list[object] = []
        monkeypatch.setattr(reader._link, "hang_up", lambda: cut.append(1))
        producer.cancel("left")
        reader.wake("left")
        assert not cut
        answers.gate.set()


class Canned:
    """A script whose every run says 1: what the worker here leases at once, no cancel could take back."""

    def running(self, *_: object) -> Any:
        yield from ()
        return 1


def test_one_request_a_second_is_always_read_by_its_caller(
    valkey: Server, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_REST_S", 0.02)
    with leading(valkey.url, context) as (producer, _):
        reader: Any = producer.channels[0].reader
        kept: list[Any] = []
        link = producer.channels[0]._link  # type: ignore[attr-defined]
        real = link.read
        monkeypatch.setattr(link, "read", lambda count: kept.append(real(count)))
        claims: list[bool] = []
        for _ in range(20):
            time.sleep(0.05)
            lead = reader.claim()
            claims.append(lead is not None)
            reader.leave()
        assert claims.count(True) >= 10
        assert kept.count([b"PONG"]) > 2  # and the other connection is used meanwhile
        stream = producer.channels[0].cursor.stream
        assert valkey.client().xlen(stream) == 0


def test_the_connection_of_submits_is_looked_after_beside_the_callers(
    valkey: Server, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_REST_S", 0.02)
    with leading(valkey.url, context) as (producer, _):
        channel: Any = producer.channels[0]
        reader, keep, looking = channel.reader, channel.keep, threading.Event()

        def slow() -> None:
            looking.set()
            time.sleep(0.5)
            raise RuntimeError("unforeseen")

        monkeypatch.setattr(reader, "_keep", slow)
        assert looking.wait(5)
        lead = reader.claim()
        reader.leave()
        assert lead is not None
        monkeypatch.setattr(reader, "_keep", lambda: None)
        assert producer.submit(context).result(5_000).served_by
        monkeypatch.setattr(channel._link, "ready", lambda _: False)
        keep()
        assert channel._link.due == 0  # one that answers no PING is given back
        monkeypatch.undo()
        assert producer.submit(context).result(5_000).served_by
