"""Who waits for the only request in flight reads its answer itself; the reply thread has all the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from echo import EchoWorker, echo
from rig import KEYS
from servers import Server
from waiting import wait_until

from producer import Producer
from producer.errors import ProducerClosed, QueueFull, ResultTimeout
from producer.messages import Failure, Reply, Request
from producer.session.replies import TAKEN_BYTES
from producer.session.threads import ReplyThread
from producer.transport.link import Link, written


class Gated:
    """Answers at once, or not before `gate` is set, those whose lane is `code-api`."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def __call__(self, request: Request) -> list[Reply | Failure]:
        if request.lane == "code-api":
            self.gate.wait(20)
        return echo(request)


@contextmanager
def leading(url: str, context: Any) -> Iterator[tuple[Producer, Gated]]:
    """A producer whose thread rests, since somebody claimed the reading."""
    answers = Gated()
    with EchoWorker(url, answers), Producer(url) as producer:
        reader: ReplyThread = producer.channels[0].reader
        wait_until(lambda: producer.predict(context) is not None and reader._resting)
        yield producer, answers
        answers.gate.set()


class Call(threading.Thread):
    """A call in a thread of its own; `outcome` is its result or its error."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call, self.outcome = call, None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._call()
        except BaseException as error:
            self.outcome = error

    def ended(self) -> Any:
        self.join(20)
        return self.outcome


def test_a_lone_request_and_the_read_of_its_answer_are_one_write(
    server: Server, context: Any, monkeypatch: Any
) -> None:
    with leading(server.url, context) as (producer, _):
        own: list[int] = []
        send = Link.send

        def noted(link: Link, commands: Any) -> None:
            if threading.current_thread() is threading.main_thread() or "amn-replies" in str(
                threading.current_thread()
            ):
                own.append(len(commands))
            send(link, commands)

        monkeypatch.setattr(Link, "send", noted)
        for _ in range(5):
            producer.predict(context)
        assert len(own) == 5
        assert all(count >= 2 for count in own)
        assert producer.stray_replies == 0


def test_the_thread_reads_what_nobody_waits_for(server: Server, context: Any) -> None:
    with leading(server.url, context) as (producer, _):
        ended: list[Any] = []
        handle = producer.submit(context)
        handle.tell(lambda one, _: ended.append((one.id, threading.current_thread().name)))
        wait_until(handle.done)
        assert ended in ([], [(handle.id, "amn-replies")])  # it may have ended before it was told


def test_who_leaves_hands_the_others_to_the_thread(server: Server, context: Any) -> None:
    with leading(server.url, context) as (producer, answers):
        slow = Call(lambda: producer.predict(context, lane="code-api"))
        wait_until(lambda: producer.in_flight == 1)
        others = [Call(lambda: producer.predict(context)) for _ in range(4)]
        handle = producer.submit(context)
        wait_until(lambda: producer.in_flight == 6)
        answers.gate.set()
        assert all(isinstance(one.ended(), Reply) for one in (slow, *others))
        assert isinstance(handle.result(10_000), Reply)
        assert (producer.in_flight, producer.stray_replies) == (0, 0)


def test_who_waits_no_longer_leaves_the_answer_to_the_thread(server: Server, context: Any) -> None:
    with leading(server.url, context) as (producer, answers):
        began_s = time.monotonic()
        with pytest.raises(ResultTimeout, match="within 150 ms"):
            producer.predict(context, lane="code-api", timeout_ms=150)
        assert 0.14 < time.monotonic() - began_s < 5
        answers.gate.set()
        wait_until(lambda: producer.in_flight == 0)
        assert producer.stray_replies == 0
        assert isinstance(producer.predict(context), Reply)


def test_a_deletion_that_goes_along_makes_nobody_wait_longer(real_server: Server, context: Any) -> None:
    """The server deletes at once, and the read behind that blocks for half a second."""
    waits_s = []
    for _ in range(3):
        with leading(real_server.url, context) as (producer, answers):
            cursor = producer.channels[0].reader._cursor
            cursor._read_bytes = TAKEN_BYTES  # as after a dozen answers
            began_s = time.monotonic()
            with pytest.raises(ResultTimeout, match="within 50 ms"):
                producer.predict(context, lane="code-api", timeout_ms=50)
            waits_s.append(time.monotonic() - began_s)
            assert cursor._read_bytes == 0
            answers.gate.set()
            wait_until(lambda: producer.in_flight == 0)
            assert producer.stray_replies == 0
    assert min(waits_s) < 0.4


@pytest.mark.parametrize("waits", [False, True])
def test_a_connection_that_breaks_under_the_one_who_reads_costs_no_answer(
    real_server: Server, context: Any, waits: bool
) -> None:
    with leading(real_server.url, context) as (producer, answers):
        call = Call(lambda: producer.predict(context, lane="code-api")) if waits else None
        if waits:
            wait_until(lambda: producer.in_flight == 1)
        real_server.admin.client_kill_filter(_type="normal", skipme=True)
        answers.gate.set()
        assert call is None or isinstance(call.ended(), Reply)
        assert isinstance(producer.predict(context), Reply)
        assert (producer.in_flight, producer.stray_replies) == (0, 0)


def test_a_script_that_the_server_forgot_is_sent_again(real_server: Server, context: Any) -> None:
    with leading(real_server.url, context) as (producer, _):
        real_server.admin.script_flush()
        assert isinstance(producer.predict(context), Reply)
        assert (producer.in_flight, producer.stray_replies) == (0, 0)


def test_a_close_ends_the_wait_of_the_one_who_reads(server: Server, context: Any) -> None:
    with leading(server.url, context) as (producer, answers):
        call = Call(lambda: producer.predict(context, lane="code-api"))
        wait_until(lambda: producer.in_flight == 1)
        began_s = time.monotonic()
        producer.close()
        assert isinstance(call.ended(), ProducerClosed)
        assert time.monotonic() - began_s < 4
        answers.gate.set()


def test_many_threads_that_predict_at_once_get_each_its_own_answer(
    real_server: Server, contexts: Any
) -> None:
    rows = contexts(8)
    with EchoWorker(real_server.url), Producer(real_server.url) as producer:

        def work(row: Any) -> bool:
            return all((producer.predict(row).vector == row[-1]).all() for _ in range(100))

        calls = [Call(lambda row=row: work(row)) for row in rows]
        assert [one.ended() for one in calls] == [True] * 8
        assert (producer.in_flight, producer.stray_replies) == (0, 0)


def test_who_reads_asks_again_until_its_time_is_over(server: Server, context: Any) -> None:
    """The first read may bring nothing, a provisional answer, or that of another thread."""
    with leading(server.url, context) as (producer, answers):
        late = threading.Timer(0.9, answers.gate.set)
        late.start()
        began_s = time.monotonic()
        assert producer.predict(context, lane="code-api", deadline_ms=4_000).served_by
        assert time.monotonic() - began_s < 3


def test_many_threads_with_deadlines_all_have_their_answers(server: Server, context: Any) -> None:
    with leading(server.url, context) as (producer, _):

        def ask() -> int:
            return sum(bool(producer.predict(context, deadline_ms=4_000).served_by) for _ in range(50))

        assert [call.ended() for call in [Call(ask) for _ in range(6)]] == [50] * 6


def test_a_refusal_counts_once(real_server: Server, context: Any) -> None:
    with leading(real_server.url, context) as (producer, _):
        channel: Any = producer.channels[0]
        channel.settings = replace(channel.settings, bytes_max=1)
        channel._head = written(7, *channel.submit_head())
        with pytest.raises(QueueFull):
            producer.predict(context)
        assert real_server.admin.hget(KEYS.stats, "refused:normal") == b"1"
        assert producer.in_flight == 0


def test_a_close_that_is_interrupted_still_tells_those_who_wait(
    server: Server, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Producer(server.url) as producer:
        handle, stop = producer.submit(context), producer.channels[0].reader.stop

        def interrupted() -> None:
            stop()
            raise KeyboardInterrupt

        monkeypatch.setattr(producer.channels[0].reader, "stop", interrupted)
        with pytest.raises(KeyboardInterrupt):
            producer.close()
        with pytest.raises(ProducerClosed):
            handle.result(0)


def test_a_call_whose_handler_used_the_producer_and_raised_leaves_no_connection_open(
    server: Server, context: Any
) -> None:
    with leading(server.url, context) as (producer, _):
        reader: ReplyThread = producer.channels[0].reader
        counts = set()
        for _ in range(3):
            wait_until(lambda: producer.predict(context) is not None and reader._resting)
            lead = reader.claim()
            reader.interrupt()  # as what the handler calls does
            reader.abandon(lead)  # as `predict` does with what the handler raises
            assert producer.predict(context)
            counts.add(len(reader._client.connection_pool._in_use_connections))
        assert counts == {1}
