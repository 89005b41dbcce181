"""What the asyncio producer promises, on fakeredis and on real servers."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
import tracemalloc
import warnings

import numpy as np
import pytest
from echo import EchoWorker, failure
from redis.exceptions import ResponseError

from producer import (
    AsyncHandle,
    AsyncProducer,
    DuplicateRequest,
    Options,
    ProducerSettings,
    QueueFull,
    errors,
)
from producer.keys import Keys
from producer.sampling import sampled
from producer.session.requests import prepare
from producer.transport.async_link import AsyncLink
from producer.transport.connection import connect_async

KEYS = Keys("main")


def settings(server, **changes):
    return ProducerSettings(url=server.url, result_timeout_ms=10_000, **changes)


def test_a_context_comes_back_as_an_answer(server, context, run):
    async def main():
        async with AsyncProducer(settings=settings(server)) as producer:
            reply = await producer.predict(context, lane="narrative")
            np.testing.assert_array_equal(reply.vector, context[-1])
            assert (producer.in_flight, producer.stray_replies) == (0, 0)

    with EchoWorker(server.url):
        run(main())


def test_many_tasks_share_few_round_trips_and_two_connections(real_server, contexts, run):
    rows = contexts(500)

    async def main():
        async with AsyncProducer(settings=settings(real_server)) as producer:
            before = real_server.admin.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
            handles = await asyncio.gather(*(producer.submit(row) for row in rows))
            after = real_server.admin.info("commandstats")["cmdstat_evalsha"]["calls"]
            clients = real_server.admin.client_list()
            assert producer.in_flight == 500
            assert after - before < 50
            assert len(clients) <= 3  # commands, replies and the test's own
            with EchoWorker(real_server.url):
                replies = await asyncio.gather(*(handle.result() for handle in handles))
        for row, reply in zip(rows, replies, strict=True):
            np.testing.assert_array_equal(reply.vector, row[-1])

    run(main())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_predict_many_takes_both_kinds_of_iterable(server, contexts, run, asynchronous):
    rows = [*contexts(150), np.full((5, 768), np.nan)]

    async def source():
        for row in rows:
            yield row

    async def main():
        async with AsyncProducer(settings=settings(server)) as producer:
            stream = producer.predict_many(source() if asynchronous else rows, in_flight=64)
            return {index: answer async for index, answer in stream}

    with EchoWorker(server.url):
        answers = run(main())
    assert sorted(answers) == list(range(151))
    assert isinstance(answers.pop(150), errors.NotFinite)
    for index, reply in answers.items():
        np.testing.assert_array_equal(reply.vector, rows[index][-1])


@pytest.mark.parametrize("in_flight", [1, 7])
def test_predict_many_never_has_more_in_flight_than_it_was_told(server, contexts, run, in_flight):
    rows, waiting, received = contexts(50), [], set()

    def source():
        for pulled, row in enumerate(rows, 1):
            waiting.append(pulled - len(received))
            yield row

    async def main():
        async with AsyncProducer(settings=settings(server)) as producer:
            async for index, _ in producer.predict_many(source(), in_flight=in_flight):
                received.add(index)

    with EchoWorker(server.url):
        run(main())
    assert received == set(range(50))
    assert max(waiting) <= in_flight


def test_failures_timeouts_and_duplicates_are_typed(server, context, run):
    def refuse(request):
        return failure(request, errors.InferenceFailed("no unit vector"))

    async def main():
        async with AsyncProducer(settings=settings(server)) as producer:
            handle = await producer.submit(context, request_id="a")
            shared = await producer.submit(context, request_id="a")
            with pytest.raises(errors.ResultTimeout):
                await handle.result(timeout_ms=20)
            with EchoWorker(server.url, refuse) as worker:
                for one in (handle, shared):
                    with pytest.raises(errors.InferenceFailed):
                        await one.result()
            assert worker.seen == ["a"]
            with pytest.raises(DuplicateRequest):
                await producer.predict(context, request_id="a")

    run(main())


def test_a_cancelled_waiter_leaves_the_request_in_flight(server, context, run):
    async def main():
        async with AsyncProducer(settings=settings(server)) as producer:
            handle = await producer.submit(context)
            waiter = asyncio.create_task(handle.result())
            await asyncio.sleep(0)
            waiter.cancel()
            with EchoWorker(server.url):
                assert (await handle.result()).id == handle.id

    run(main())


def test_a_full_queue_refuses_or_blocks(server, contexts, run):
    async def main():
        async with AsyncProducer(settings=settings(server, entries_max=3)) as producer:
            with pytest.raises(QueueFull) as caught:
                await producer.submit_many(contexts(5))
            assert len(caught.value.accepted) == 3
            with EchoWorker(server.url):
                handles = await producer.submit_many(contexts(20), block=True)
                await asyncio.gather(*(h.result() for h in [*caught.value.accepted, *handles]))

    run(main())


def test_cancel_and_truth_work_as_in_the_synchronous_producer(server, context, run):
    async def main():
        async with AsyncProducer(settings=settings(server)) as producer:
            handle = await producer.submit(context)
            assert await handle.cancel()
            with pytest.raises(errors.Cancelled):
                await handle.result()
            options = [Options(sequence="doc", position=i) for i in range(60)]
            handles = await producer.submit_many([context] * 60, options=options)
            sent = await asyncio.gather(*(producer.report_truth(h, context[0]) for h in handles))
            assert server.admin.xlen(KEYS.truths) == sum(sent) > 0

    run(main())


def test_closing_tells_those_who_wait_and_removes_the_reply_stream(server, context, run):
    async def main():
        async with AsyncProducer(settings=settings(server)) as producer:
            handle = await producer.submit(context)
        with pytest.raises(errors.ProducerClosed):
            await handle.result()
        with pytest.raises(errors.ProducerClosed):
            await producer.submit(context)
        await producer.close()
        assert server.admin.keys("*replies*") == []

    run(main())


def test_closing_during_a_submit_is_typed(server, context, run):
    async def main():
        producer = AsyncProducer(settings=settings(server))
        await producer.start()
        tasks = [asyncio.create_task(producer.submit(context)) for _ in range(20)]
        await asyncio.sleep(0)
        await producer.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {errors.ProducerClosed, AsyncHandle}
        assert all(isinstance(o, errors.ProducerClosed) or o.done() for o in outcomes)

    run(main())


ENDINGS = {
    "submitted, and not waited for": "await producer.submit(context)",
    "answered": "await producer.predict(context)",
    "idle": "await producer.predict(context); await asyncio.sleep(1)",
    "an error of the user's": "await producer.predict(context); raise ValueError('theirs')",
    "within a stream": "stream = producer.predict_many([context] * 50, in_flight=8); await anext(stream)",
    "a task waits": "asyncio.create_task(producer.predict(context)); await asyncio.sleep(0.05)",
    "blocked at a full queue": "asyncio.create_task(producer.submit_many([context] * 300, block=True)); "
    "await asyncio.sleep(0.3)",
    "within close": "await producer.submit(context); asyncio.create_task(producer.close()); "
    "await asyncio.sleep(0)",
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_a_process_ends_also_when_its_producer_was_not_closed(real_server, ending):
    program = f"""
import asyncio, sys
import numpy as np
from producer import AsyncProducer, ProducerSettings

context = np.eye(5, 768, dtype=np.float32)

async def main():
    producer = AsyncProducer(settings=ProducerSettings(url=sys.argv[1], entries_max=200))
    {ending}

for _ in range(5):  # whether a cancellation meets an answer is a matter of luck
    try:
        asyncio.run(main())
    except ValueError:
        pass
"""
    with EchoWorker(real_server.url):
        command = [sys.executable, "-W", "ignore", "-c", program, real_server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_in_another_event_loop_a_producer_is_refused_at_once(real_server, context):
    """As of a task queue, or a notebook, that runs each function in a loop of its own."""

    async def ask(producer):
        return (await producer.predict(context)).served_by

    async def each_verb(producer, handle):
        for call in (
            producer.start(),
            producer.submit(context),
            producer.predict_batch(context[None]),
            producer.cancel(handle),
            producer.report_truth(next(f"{n}" for n in range(999) if sampled(f"{n}", 0.05)), context[0]),
            anext(producer.predict_many([context])),
            handle.result(),
        ):
            with pytest.raises(errors.ProducerClosed, match="event loop"):
                await call

    producer = AsyncProducer(settings=settings(real_server))  # made outside of a loop: that is fine
    with EchoWorker(real_server.url):
        assert asyncio.run(ask(producer)) == "amn"
    began_s = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the first loop ended without a close
        handle = asyncio.run(sent_elsewhere(producer, context))
        asyncio.run(each_verb(producer, handle))
        asyncio.run(producer.close())
        asyncio.run(producer.close())
        assert time.monotonic() - began_s < 5
        clients = [row for row in real_server.admin.client_list() if row["cmd"] == "xread"]
        assert not clients, "the connections of a loop that has ended are dropped by close"
        del producer, handle
        gc.collect()


def test_a_producer_is_not_closed_from_beside_its_own_loop(real_server, context):
    async def main():
        async with AsyncProducer(settings=settings(real_server)) as producer:
            with pytest.raises(errors.ProducerClosed, match="another event loop"):
                await asyncio.to_thread(asyncio.run, producer.close())
            with EchoWorker(real_server.url):
                assert (await producer.predict(context)).served_by == "amn"

    asyncio.run(main())


def test_when_all_tasks_are_cancelled_those_who_wait_are_told(real_server, context):
    async def main():
        async with AsyncProducer(settings=settings(real_server)) as producer:
            handle = await producer.submit(context)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            with pytest.raises(errors.ProducerClosed, match="cancelled"):
                await handle.result()
            with pytest.raises(errors.ProducerClosed, match="make a new"):
                await producer.submit(context)

    asyncio.run(main())


def test_answers_that_nobody_waited_for_do_not_meet_the_next_call(real_server):
    async def main():
        client = connect_async(settings(real_server), block_ms=500)
        link = AsyncLink(client)
        waits = asyncio.create_task(link.each([("PING",), ("BLPOP", "nothing", 5)]))
        await asyncio.sleep(0.1)
        waits.cancel()
        await asyncio.wait((waits,))
        assert await link.each([("ECHO", "mine")]) == [b"mine"]
        [refused, answer] = await link.each([("NONSENSE",), ("ECHO", "behind")])
        assert (isinstance(refused, ResponseError), answer) == (True, b"behind")
        await link.close()
        await client.aclose()

    asyncio.run(main())


def test_a_link_whose_closing_is_cancelled_leaves_no_connection_in_use(real_server, monkeypatch):
    async def main():
        client = connect_async(settings(real_server))
        link = AsyncLink(client)
        assert await link.each([("ECHO", "a")]) == [b"a"]
        connection = link._connection

        async def cancelled(**_):
            raise asyncio.CancelledError

        with monkeypatch.context() as patched:
            patched.setattr(connection, "disconnect", cancelled)
            with pytest.raises(asyncio.CancelledError):
                await link.close()
        assert not client.connection_pool._in_use_connections
        assert await link.each([("ECHO", "b")]) == [b"b"]
        await link.close()
        await client.aclose()

    asyncio.run(main())


def test_a_large_command_is_copied_once_and_goes_in_parts_where_the_socket_is_full(real_server):
    """The socket takes a part of it at first; the rest follows while the answer is waited for."""
    large = bytes(16 * 1024**2)

    async def main():
        client = connect_async(settings(real_server))
        link = AsyncLink(client)
        await link.each([("PING",)])
        tracemalloc.start()
        assert await link.each([("SET", "large", large)]) == [b"OK"]
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 2.5 * len(large)  # the command, and what the transport keeps of it
        assert await link.each([("STRLEN", "large"), ("ECHO", "b")]) == [len(large), b"b"]
        await link.close()
        await client.aclose()

    asyncio.run(main())


async def sent_elsewhere(producer, context):
    return AsyncHandle(producer, prepare(context, Options(), "client", ProducerSettings()))
