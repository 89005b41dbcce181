"""What is promised beside the usual path: odd arguments, slow or failing sources, closed producers."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from echo import EchoWorker
from servers import Server, free_port

from producer import AsyncProducer, Options, Producer, ProducerSettings, errors
from producer.session.threads import ThreadChannel


def settings(server, **changes):
    return ProducerSettings(url=server.url, result_timeout_ms=10_000, **changes)


# -- closed -------------------------------------------------------------------------------------


def test_a_stream_of_a_producer_that_is_closed_ends_with_errors(server, contexts):
    with EchoWorker(server.url):
        with Producer(settings=settings(server)) as producer:
            answers = producer.predict_many(iter(contexts(300)), in_flight=64)
            first = next(answers)
        rest = list(answers)
    assert sorted([first[0], *(index for index, _ in rest)]) == list(range(300))
    assert isinstance(rest[-1][1], errors.ProducerClosed)


def test_a_stream_of_an_asyncio_producer_that_is_closed_ends_with_errors(server, contexts, run):
    async def main():
        async with AsyncProducer(settings=settings(server)) as producer:
            answers = producer.predict_many(contexts(300), in_flight=64)
            first = await anext(answers)
        return first, [answer async for answer in answers]

    with EchoWorker(server.url):
        first, rest = run(main())
    assert sorted([first[0], *(index for index, _ in rest)]) == list(range(300))
    assert isinstance(rest[-1][1], errors.ProducerClosed)


def test_a_closed_producer_does_nothing_any_more(server, context, run):
    with Producer(settings=settings(server)) as producer:
        handle = producer.submit(context, sequence="doc-12", position=145)  # in the 1 % sample
    for call in (
        lambda: producer.submit(context),
        lambda: producer.cancel(handle),
        lambda: producer.report_truth(handle, context[0]),
        lambda: producer.report_truth("in no sample", context[0]),
    ):
        with pytest.raises(errors.ProducerClosed):
            call()

    async def main():
        async with AsyncProducer(settings=settings(server)) as producer:
            waiting = await producer.submit(context)
        with pytest.raises(errors.ProducerClosed):
            await producer.cancel(waiting)

    run(main())


# -- sources ------------------------------------------------------------------------------------


def test_a_slow_source_does_not_hold_up_what_it_gave(server, contexts):
    asked, asked_before = 0, {}

    def source():
        nonlocal asked
        for row in contexts(8):
            asked += 1
            yield row
            time.sleep(0.2)

    with EchoWorker(server.url), Producer(settings=settings(server)) as producer:
        for index, _ in producer.predict_many(source()):
            asked_before[index] = asked
    # Yielded when the source has given one or two more, and not at the end of all.
    assert asked_before[0] <= 4
    assert asked_before[3] <= 7


def test_answers_are_yielded_while_an_asynchronous_source_is_waited_for(server, contexts, run):
    rows, got = contexts(5), []

    async def main():
        answered = asyncio.Event()

        async def source():
            for row in rows:
                yield row
                await asyncio.wait_for(answered.wait(), 5)  # for the answer to what it gave before
                answered.clear()

        async with AsyncProducer(settings=settings(server)) as producer:
            async for index, _ in producer.predict_many(source()):
                got.append(index)
                answered.set()

    with EchoWorker(server.url):
        run(main())
    assert got == list(range(5))


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_source_raises_comes_after_the_answers_to_what_it_gave(server, contexts, run, kind):
    def source():
        yield from contexts(100)
        raise OSError("the disk is gone")

    got = []

    async def asynchronous():
        async with AsyncProducer(settings=settings(server)) as producer:
            async for answer in producer.predict_many(source()):
                got.append(answer)  # noqa: PERF401 - what came before the error counts

    def synchronous():
        with Producer(settings=settings(server)) as producer:
            for answer in producer.predict_many(source()):
                got.append(answer)  # noqa: PERF402

    with EchoWorker(server.url), pytest.raises(OSError, match="the disk is gone"):
        run(asynchronous()) if kind == "async" else synchronous()
    assert sorted(index for index, _ in got) == list(range(100))
    assert all(answer.served_by == "amn" for _, answer in got)


def test_a_stream_that_is_left_gives_its_slots_back(server, contexts, run):
    async def main():
        async with AsyncProducer(settings=settings(server)) as producer:
            async for _ in producer.predict_many(contexts(500), in_flight=64):
                break
            for _ in range(500):
                left = [
                    task for task in asyncio.all_tasks() if task.get_name().startswith("amn-predict-many")
                ]
                if not left and not producer.in_flight:
                    return producer.stray_replies
                await asyncio.sleep(0.01)
        raise AssertionError(f"{producer.in_flight} requests and {left} are left")

    with EchoWorker(server.url):
        assert run(main()) == 0


def test_a_context_that_numpy_cannot_read_is_refused_alone(server, contexts):
    class Gradient:
        def __array__(self, *_, **__):
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")

    with EchoWorker(server.url), Producer(settings=settings(server)) as producer:
        answers = dict(producer.predict_many([*contexts(2), Gradient()]))
    assert isinstance(answers[2], errors.BadShape)
    assert "requires grad" in str(answers[2])
    assert answers[0].served_by == answers[1].served_by == "amn"


# -- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"request_id": "a"}, {"position": 0, "sequence": "s"}])
def test_a_stream_takes_no_options_that_name_one_context(server, contexts, run, wrong):
    async def main():
        async with AsyncProducer(settings=settings(server)) as producer:
            await anext(producer.predict_many(contexts(2), options=Options(**wrong)))

    refused = pytest.raises(errors.InvalidRequest, match="leave them out of predict_many")
    with Producer(settings=settings(server)) as producer, refused:
        producer.predict_many(contexts(2), options=Options(**wrong))
    with pytest.raises(errors.InvalidRequest, match="leave them out of predict_many"):
        run(main())


def test_options_and_fields_together_are_refused(server, context, run):
    async def main():
        async with AsyncProducer(settings=settings(server)) as producer:
            await producer.submit(context, options=Options(), tokens=3)

    with Producer(settings=settings(server)) as producer:
        for call in (producer.submit, producer.predict):
            with pytest.raises(errors.InvalidRequest, match=r"options, and deadline_ms too"):
                call(context, options=Options(lane="narrative"), deadline_ms=50)
        with pytest.raises(errors.InvalidRequest, match=r"options, and lane too"):
            producer.submit_batch([context], options=Options(), lane="narrative")
    with pytest.raises(errors.InvalidRequest, match=r"options, and tokens too"):
        run(main())


def test_a_url_beside_settings_is_the_one_that_counts(real_server, context):
    server = real_server
    elsewhere = ProducerSettings(url=f"redis://127.0.0.1:{free_port()}/0", result_timeout_ms=10_000)
    with EchoWorker(server.url), Producer(server.url, settings=elsewhere) as producer:
        assert producer.predict(context).served_by == "amn"
        assert producer.settings == replace(elsewhere, url=server.url)


@pytest.mark.parametrize("wrong", ["5000", True, float("nan"), [1]])
def test_a_result_is_not_waited_for_a_time_that_is_none(server, context, wrong):
    refused = pytest.raises(errors.InvalidRequest, match=r"timeout_ms is .*number of milliseconds")
    with Producer(settings=settings(server)) as producer, refused:
        producer.submit(context).result(timeout_ms=wrong)


def test_without_end_is_a_time_to_wait(server, context):
    with EchoWorker(server.url), Producer(settings=settings(server)) as producer:
        assert producer.predict(context, timeout_ms=float("inf")).served_by == "amn"


def test_a_result_is_waited_for_until_its_deadline_and_not_from_the_call_on(server, context):
    with Producer(settings=settings(server)) as producer:
        handle = producer.submit(context, deadline_ms=100)
        time.sleep(1.2)
        began_s = time.monotonic()
        with pytest.raises(errors.ResultTimeout):
            handle.result()
        assert time.monotonic() - began_s < 1  # a second after the deadline, which is over


# -- a server that comes later -------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["submit", "submit_batch"])
def test_a_submit_that_blocks_waits_for_the_first_server_too(make_server, context, verb):
    server: Server = make_server()
    server.kill()
    later = threading.Timer(0.5, server.start)
    later.start()
    try:
        producer = Producer(settings=settings(server))  # nobody has started it
        what = [context] if verb == "submit_batch" else context
        handle = getattr(producer, verb)(what, block=True)
        assert handle.id
        producer.close()
    finally:
        later.join()


def test_an_asyncio_submit_that_blocks_waits_for_the_first_server_too(make_server, context, run):
    server: Server = make_server()
    server.kill()
    later = threading.Timer(0.5, server.start)
    later.start()

    async def main():
        producer = AsyncProducer(settings=settings(server))
        handle = await producer.submit(context, block=True)
        await producer.close()
        return handle.id

    try:
        assert run(main())
    finally:
        later.join()


# -- partitions -----------------------------------------------------------------------------------


def halves(server, make):
    """A producer of two partitions, of which the first has no server."""
    producer = make(partitions=2, settings=settings(server, retry_ms=50))
    away = replace(producer.settings, url=f"redis://127.0.0.1:{free_port()}/0")
    kind = type(producer.channels[0])
    producer.channels[:] = [kind(away), kind(producer.settings)]
    return producer


def test_a_partition_that_is_away_takes_no_other_along(real_server, contexts):
    server = real_server
    with EchoWorker(server.url), halves(server, Producer) as producer:
        with pytest.raises(errors.ServerUnavailable) as caught:
            producer.submit_many(contexts(6))
        assert [handle.result().served_by for handle in caught.value.accepted] == ["amn"] * 3


def test_an_asyncio_partition_that_is_away_takes_no_other_along(real_server, contexts, run):
    server = real_server

    async def main():
        async with halves(server, AsyncProducer) as producer:
            with pytest.raises(errors.ServerUnavailable) as caught:
                await producer.submit_many(contexts(6))
            return [(await handle.result()).served_by for handle in caught.value.accepted]

    with EchoWorker(server.url):
        assert run(main()) == ["amn"] * 3


def test_partitions_that_are_all_away_are_an_error_at_the_start():
    nowhere = ProducerSettings(url=f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(errors.ServerUnavailable), Producer(partitions=2, settings=nowhere):
        pass


def test_a_stream_remembers_in_which_partition_each_request_went(server, contexts, monkeypatch):
    monkeypatch.setattr("producer.session.pump._FILL_S", 60.0)  # whole chunks, however slow this machine is
    producer = Producer(partitions=2, settings=settings(server))
    producer.channels[:] = [ThreadChannel(producer.settings) for _ in range(2)]
    with EchoWorker(server.url), producer:
        answers = dict(producer.predict_many(contexts(256), in_flight=128))
    parts_of = [producer._spread.where(answers[index].id) for index in range(256)]
    assert parts_of == [0] * 64 + [1] * 64 + [0] * 64 + [1] * 64
    assert np.array_equal(answers[0].vector, contexts(256)[0][-1])
