"""Who awaits the only request in flight reads its answer in its own task; the reply task has the others."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from echo import EchoWorker
from rig import KEYS
from servers import Server
from test_producer_lead import Gated

from producer import AsyncProducer, ProducerSettings
from producer.errors import Cancelled, ProducerClosed, QueueFull, ResultTimeout
from producer.messages import Reply
from producer.session.tasks import _ALONE_MIN, _REST_S, ReplyTask
from producer.transport.async_link import AsyncLink
from producer.transport.link import written


async def until(condition: Any) -> None:
    ends_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends_s
        await asyncio.sleep(0.005)


async def rested(producer: AsyncProducer, context: Any) -> ReplyTask:
    """The reply task, which rests after lone requests until the next one comes."""
    await until(lambda: producer.in_flight == 0)
    for _ in range(_ALONE_MIN):
        assert isinstance(await producer.predict(context), Reply)
    reader: ReplyTask = producer.channels[0].reader
    await until(lambda: not (reader._bell.is_set() or reader._turn.locked()))
    return reader


@asynccontextmanager
async def leading(url: str, context: Any) -> AsyncIterator[tuple[AsyncProducer, ReplyTask, Gated]]:
    """A producer whose task rests; requests of the lane `code-api` wait for a gate."""
    answers = Gated()
    with EchoWorker(url, answers):
        try:
            async with AsyncProducer(settings=ProducerSettings(url=url)) as producer:
                yield producer, await rested(producer, context), answers
        finally:
            answers.gate.set()


def connections(server: Server) -> set[Any]:
    return {row["id"] for row in server.admin.client_list()}


def test_a_lone_request_and_the_read_of_its_answer_are_one_write(
    server: Server, context: Any, run: Any, monkeypatch: Any
) -> None:
    async def main() -> None:
        async with leading(server.url, context) as (producer, _, _):
            sent: list[tuple[bool, int]] = []
            send, caller = AsyncLink.send, asyncio.current_task()

            async def noted(link: AsyncLink, commands: Any) -> None:
                sent.append((asyncio.current_task() is caller, len(commands)))
                await send(link, commands)

            monkeypatch.setattr(AsyncLink, "send", noted)
            for _ in range(5):
                await producer.predict(context)
            assert len(sent) == 5
            assert all(own and count >= 2 for own, count in sent)
            assert producer.stray_replies == 0

    run(main())


@types.coroutine
def cancelled_at(place: int, late: bool, coroutine: Any) -> Any:
    """Awaits a coroutine, whose task is cancelled where it waits for this time, or when that is over."""
    resume: Any = partial(coroutine.send, None)
    for count in itertools.count():
        try:
            waits_for = resume()
        except StopIteration as ended:
            return ended.value
        if count == place and not late:
            asyncio.current_task().cancel()  # type: ignore[union-attr]
        try:
            resume = partial(coroutine.send, (yield waits_for))
            if count == place and late:
                resume = partial(coroutine.throw, asyncio.CancelledError())
        except BaseException as error:
            resume = partial(coroutine.throw, error)


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("late", [False, True])
def test_a_caller_who_is_cancelled_anywhere_costs_no_answer_and_no_connection(
    real_server: Server, context: Any, run: Any, late: bool, answered: bool
) -> None:
    lane = "narrative" if answered else "code-api"

    async def main() -> None:
        async with leading(real_server.url, context) as (producer, _, answers):
            before = connections(real_server)
            for place in itertools.count():
                answers.gate.clear()
                call = cancelled_at(place, late, producer.predict(context, lane=lane, timeout_ms=700))
                task = asyncio.create_task(wrapped(call))
                await asyncio.sleep(0)
                others = [asyncio.create_task(producer.predict(context)) for _ in range(2 * (place % 2))]
                with suppress(ResultTimeout):
                    await asyncio.wait((task,))
                    if not task.cancelled():
                        break
                answers.gate.set()
                async with asyncio.timeout(_REST_S - 1):  # after that, the task would look by itself
                    assert all(isinstance(one, Reply) for one in await asyncio.gather(*others))
                    await until(lambda: producer.in_flight == 0)
                await rested(producer, context)
            assert place >= (2 if answered else 4)
            assert isinstance(task.exception() or task.result(), Reply if answered else ResultTimeout)
            answers.gate.set()
            await until(lambda: producer.in_flight == 0)
            assert before <= connections(real_server)
            assert producer.stray_replies <= 3  # the answers to submits that were cancelled

    run(main())


async def wrapped(call: Any) -> Any:
    return await call


def test_a_cancellation_that_the_driver_loses_still_ends_a_lone_submit(
    real_server: Server, context: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11 loses one that meets the end of a wait with a time limit, as a first write is."""
    send = AsyncLink.send

    async def losing(link: AsyncLink, commands: Any) -> None:
        await send(link, commands)
        if "amn-" not in asyncio.current_task().get_name():
            with suppress(asyncio.CancelledError):
                asyncio.current_task().cancel()
                await asyncio.sleep(0)

    async def main() -> None:
        async with leading(real_server.url, context) as (producer, _, answers):
            monkeypatch.setattr(AsyncLink, "send", losing)
            task = asyncio.create_task(producer.predict(context, lane="code-api", timeout_ms=3_000))
            await asyncio.wait((task,))
            assert task.cancelled()
            answers.gate.set()
            monkeypatch.undo()
            await rested(producer, context)

    run(main())


def test_callers_who_begin_together_after_lone_requests_share_a_round_trip(
    server: Server, context: Any, run: Any, monkeypatch: Any
) -> None:
    async def main() -> None:
        async with leading(server.url, context) as (producer, _, _):
            submits: list[int] = []
            send, script = AsyncLink.send, producer.channels[0].submit_script.by_hash

            async def noted(link: AsyncLink, commands: Any) -> None:
                submits.extend(len(words) for words in commands if words[0] is script)
                await send(link, commands)

            monkeypatch.setattr(AsyncLink, "send", noted)
            await asyncio.gather(*(producer.predict(context) for _ in range(3)))
            assert submits == [2 + 3 * 4]

    run(main())


def test_while_callers_read_the_connection_of_submits_is_looked_after(
    real_server: Server, context: Any, run: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("producer.session.tasks._REST_S", 0.1)

    async def main() -> None:
        async with leading(real_server.url, context) as (producer, _, _):
            link = producer.channels[0]._link  # type: ignore[attr-defined]
            broken = link._connection._writer.get_extra_info("socket")
            broken.shutdown(socket.SHUT_RDWR)
            await until(lambda: link._connection._writer.get_extra_info("socket") is not broken)
            assert isinstance(await producer.predict(context), Reply)

    run(main())


def test_who_waits_no_longer_leaves_the_answer_to_the_task(
    real_server: Server, context: Any, run: Any
) -> None:
    async def main() -> None:
        async with leading(real_server.url, context) as (producer, _, answers):
            before, began_s = connections(real_server), time.monotonic()
            with pytest.raises(ResultTimeout, match="within 150 ms"):
                await producer.predict(context, lane="code-api", timeout_ms=150)
            assert 0.14 < time.monotonic() - began_s < 2
            answers.gate.set()
            await rested(producer, context)
            assert producer.in_flight == 0
            assert producer.stray_replies == 0
            assert before <= connections(real_server)
            assert isinstance(await producer.predict(context), Reply)

    run(main())


def test_a_request_that_another_task_takes_back_ends_the_wait_of_the_one_who_reads(
    real_server: Server, context: Any, run: Any
) -> None:
    took_s = []

    async def main(name: str) -> None:
        async with leading(real_server.url, context) as (producer, reader, answers):
            call = asyncio.create_task(producer.predict(context, lane="code-api", request_id=name))
            await until(lambda: reader._limit is not None)
            began_s = time.monotonic()
            producer.channels[0].inflight.settle(name, Cancelled("taken back"))
            reader.wake(name)
            with pytest.raises(Cancelled):
                await call
            took_s.append(time.monotonic() - began_s)
            answers.gate.set()

    for number in range(3):  # a busy machine may stop us for a while
        run(main(f"mine-{number}"))
    assert min(took_s) < 0.3


def test_the_task_reads_what_nobody_waits_for(server: Server, context: Any, run: Any) -> None:
    async def main() -> None:
        async with leading(server.url, context) as (producer, _, answers):
            handle = await producer.submit(context)
            await until(handle.done)
            await rested(producer, context)
            slow = asyncio.create_task(producer.predict(context, lane="code-api"))
            await until(lambda: producer.in_flight == 1)
            others = [asyncio.create_task(producer.predict(context)) for _ in range(4)]
            handle = await producer.submit(context)
            answers.gate.set()
            assert all(isinstance(one, Reply) for one in await asyncio.gather(slow, *others))
            assert isinstance(await handle.result(), Reply)
            assert (producer.in_flight, producer.stray_replies) == (0, 0)

    run(main())


@pytest.mark.parametrize("waits", [False, True])
def test_a_connection_that_breaks_under_the_one_who_reads_costs_no_answer(
    real_server: Server, context: Any, run: Any, waits: bool
) -> None:
    async def main() -> None:
        async with leading(real_server.url, context) as (producer, reader, answers):
            call = asyncio.create_task(producer.predict(context, lane="code-api")) if waits else None
            if waits:
                await until(lambda: reader._limit is not None)
            real_server.admin.client_kill_filter(_type="normal", skipme=True)
            answers.gate.set()
            assert call is None or isinstance(await call, Reply)
            real_server.admin.script_flush()
            assert isinstance(await producer.predict(context), Reply)
            assert (producer.in_flight, producer.stray_replies) == (0, 0)

    run(main())


def test_a_close_ends_the_wait_of_the_one_who_reads(server: Server, context: Any, run: Any) -> None:
    async def main() -> None:
        async with leading(server.url, context) as (producer, reader, _):
            call = asyncio.create_task(producer.predict(context, lane="code-api"))
            await until(lambda: reader._limit is not None)
            began_s = time.monotonic()
            await producer.close()
            with pytest.raises(ProducerClosed):
                await call
            assert time.monotonic() - began_s < 4

    run(main())


@pytest.mark.parametrize("turns", range(5))
def test_a_close_during_a_lone_submit_is_typed_and_leaves_no_connection_open(
    real_server: Server, context: Any, run: Any, turns: int
) -> None:
    async def main() -> None:
        before = connections(real_server)
        async with leading(real_server.url, context) as (producer, _, answers):
            between = connections(real_server)
            call = asyncio.create_task(producer.predict(context, lane="code-api"))
            for _ in range(turns):
                await asyncio.sleep(0)
            await producer.close()
            with pytest.raises(ProducerClosed):
                await call
            assert connections(real_server) < between  # those of the worker are left
            answers.gate.set()
        assert connections(real_server) <= before

    run(main())


def test_a_refusal_counts_once(real_server: Server, context: Any, run: Any) -> None:
    async def main() -> None:
        async with leading(real_server.url, context) as (producer, _, _):
            channel: Any = producer.channels[0]
            channel.settings = replace(channel.settings, bytes_max=1)
            channel._head = written(7, *channel.submit_head())
            with pytest.raises(QueueFull):
                await producer.predict(context)
            assert real_server.admin.hget(KEYS.stats, "refused:normal") == b"1"
            assert producer.in_flight == 0

    run(main())
