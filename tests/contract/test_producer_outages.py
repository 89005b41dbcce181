"""The server goes away and comes back: nothing accepted is lost, and each outage is one log line."""

from __future__ import annotations

import asyncio
import signal
import threading
import time

import numpy as np
import pytest
from echo import EchoWorker
from servers import KINDS, Server, free_port

import producer.inflight
from producer import AsyncProducer, Options, Producer, ProducerSettings, errors
from producer.keys import Keys

KEYS = Keys("main")
PERSISTENT = ("--appendonly", "yes", "--appendfsync", "always")


def settings(url, **changes):
    return ProducerSettings(url=url, result_timeout_ms=20_000, **changes)


def eventually(condition, what: str) -> None:
    """Waits for something that another thread or process does."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.005)


def lines(caplog, event: str) -> int:
    return sum(record.getMessage().startswith(event) for record in caplog.records)


# -- no server, wrong server --------------------------------------------------------------------


def test_a_missing_server_is_one_line_that_says_what_to_do(tmp_path):
    for url in (f"redis://127.0.0.1:{free_port()}/0", f"unix://{tmp_path}/none"):
        with pytest.raises(errors.ServerUnavailable, match=r"no usable server at .*amn up") as caught:
            Producer(url).start()
        assert caught.value.code == "server_unavailable"
        assert caught.value.retryable
        assert "\n" not in str(caught.value)


def test_a_missing_server_is_the_same_error_for_asyncio(tmp_path, run):
    async def main():
        with pytest.raises(errors.ServerUnavailable, match="no usable server"):
            await AsyncProducer(f"unix://{tmp_path}/none").start()

    run(main())


@pytest.mark.parametrize("url_password", ["", ":wrong-pw@", "worker:wrong-pw@"])
def test_wrong_or_no_credentials_are_named_and_never_shown(make_server, url_password, caplog, run):
    server = make_server(tcp=True, arguments=("--requirepass", "right"))
    url = f"redis://{url_password}127.0.0.1:{server.port}/0"

    async def asynchronous():
        await AsyncProducer(url).start()

    for start in (Producer(url).start, lambda: run(asynchronous())):
        with pytest.raises(errors.AuthenticationFailed, match="refused the credentials") as caught:
            start()
        assert caught.value.code == "authentication_failed"
        assert not caught.value.retryable
        assert "wrong-pw" not in str(caught.value) + caplog.text


def test_the_right_password_works(make_server, context):
    server = make_server(tcp=True, arguments=("--requirepass", "p@:/w"))
    url = f"redis://:p%40%3A%2Fw@127.0.0.1:{server.port}/0"
    with EchoWorker(url), Producer(url) as producer:
        assert producer.predict(context).served_by == "amn"


# -- outages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_and_restarted_server_loses_no_accepted_request(make_server, contexts, caplog, kind):
    server: Server = make_server(kind, arguments=PERSISTENT)
    with Producer(settings=settings(server.url)) as producer:
        handles = producer.submit_many(contexts(100))
        server.kill()
        eventually(lambda: lines(caplog, "reply_reader_waits"), "the reader notices")
        time.sleep(0.1)  # several tries
        server.start()
        with EchoWorker(server.url) as worker:
            assert [handle.result().id for handle in handles] == [handle.id for handle in handles]
        assert sorted(worker.seen) == sorted(handle.id for handle in handles)
        assert producer.stray_replies == 0
    assert lines(caplog, "reply_reader_waits_for_server") == 1
    assert lines(caplog, "reply_reader_resumed") == 1


def test_answers_given_while_the_client_was_cut_off_are_received_later(make_server, contexts):
    server: Server = make_server(arguments=PERSISTENT)
    with Producer(settings=settings(server.url)) as producer, EchoWorker(server.url) as worker:
        handles = producer.submit_many(contexts(200))
        eventually(lambda: worker.seen, "the worker began")
        server.kill()
        server.start()
        assert len({handle.result().id for handle in handles}) == 200
        assert producer.stray_replies == 0


def test_dropped_connections_are_not_noticed_by_submit(real_server, contexts):
    with EchoWorker(real_server.url), Producer(settings=settings(real_server.url)) as producer:
        for row in contexts(20):
            real_server.admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert producer.predict(row).served_by == "amn"
        assert producer.stray_replies == 0


def test_dropped_connections_are_not_noticed_by_cancel_and_truth(real_server, context, run):
    def drop():
        real_server.admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    with Producer(settings=settings(real_server.url)) as producer:
        handle = producer.submit(context, sequence="doc-12", position=145)  # in the 1 % sample
        drop()
        assert producer.report_truth(handle, context[0])
        drop()
        assert handle.cancel()

    async def main():
        async with AsyncProducer(settings=settings(real_server.url)) as producer:
            handle = await producer.submit(context, sequence="doc-12", position=145)
            drop()
            assert await producer.report_truth(handle, context[0])
            drop()
            assert await handle.cancel()

    run(main())


def test_dropped_connections_are_not_noticed_by_the_asyncio_producer(real_server, contexts, run):
    async def main():
        async with AsyncProducer(settings=settings(real_server.url)) as producer:
            for row in contexts(20):
                real_server.admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                assert (await producer.predict(row)).served_by == "amn"
            assert producer.stray_replies == 0

    with EchoWorker(real_server.url):
        run(main())


def test_submit_says_unavailable_after_a_short_while_and_block_waits(make_server, context, caplog):
    server: Server = make_server(arguments=PERSISTENT)
    with Producer(settings=settings(server.url, retry_ms=50)) as producer:
        server.kill()
        for _ in range(3):
            with pytest.raises(errors.ServerUnavailable) as caught:
                producer.submit(context)
            assert caught.value.retryable
        assert producer.in_flight == 0
        assert lines(caplog, "submit_waits_for_server") == 1
        threading.Timer(0.2, server.start).start()
        handle = producer.submit(context, block=True)
        with EchoWorker(server.url):
            assert handle.result().id == handle.id
        assert lines(caplog, "submit_resumed") == 1


def test_the_asyncio_producer_survives_a_restart(make_server, contexts, caplog, run):
    server: Server = make_server(arguments=PERSISTENT)

    async def main():
        async with AsyncProducer(settings=settings(server.url)) as producer:
            handles = await producer.submit_many(contexts(50))
            await asyncio.to_thread(server.kill)
            late = asyncio.create_task(producer.submit(contexts(1)[0], block=True))
            await asyncio.sleep(0.1)
            await asyncio.to_thread(server.start)
            handles.append(await late)
            with EchoWorker(server.url) as worker:
                for handle in handles:
                    assert (await handle.result()).id == handle.id
            assert len(worker.seen) == 51

    run(main())
    assert lines(caplog, "reply_reader_waits_for_server") == 1


def test_a_stalled_server_runs_a_repeated_submit_once(make_server, context):
    server: Server = make_server()
    with Producer(settings=settings(server.url, command_timeout_ms=100)) as producer:
        server.signal(signal.SIGSTOP)
        threading.Timer(0.5, server.signal, (signal.SIGCONT,)).start()
        handle = producer.submit(context, block=True, request_id="a")
        with EchoWorker(server.url) as worker:
            assert handle.result().id == "a"
        assert worker.seen == ["a"]


def test_the_answer_to_a_given_up_submit_is_the_answer_to_its_repeat(make_server, context):
    server = make_server()
    impatient = settings(server.url, command_timeout_ms=100, retry_ms=1)
    with Producer(settings=impatient) as producer:
        with EchoWorker(server.url):
            producer.predict(context)  # the server knows the script now
        server.signal(signal.SIGSTOP)
        with pytest.raises(errors.ServerUnavailable):
            producer.submit(context, request_id="a")
        server.signal(signal.SIGCONT)
        with EchoWorker(server.url):
            eventually(lambda: producer.stray_replies == 1, "the answer came, and nobody waited")
            handle = producer.submit(context, request_id="a")
            np.testing.assert_allclose(handle.result().vector, context[-1], atol=1e-6)
            with pytest.raises(errors.DuplicateRequest):
                producer.submit(context, request_id="a").result()


def test_a_cancel_that_is_repeated_after_a_lost_reply_is_still_true(real_server, context):
    with Producer(real_server.url) as producer:
        handle = producer.submit(context, request_id="a")
        session = producer._session
        keys, arguments = session.cancel_call("a")
        assert producer._cancel(keys=keys, args=arguments) == 1  # carried out; nobody hears of it
        assert handle.cancel()
        with pytest.raises(errors.Cancelled):
            handle.result()
        assert real_server.admin.hget(KEYS.stats, "cancelled") == b"1"


def test_a_server_out_of_memory_refuses_and_keeps_what_it_has(real_server, contexts):
    with Producer(settings=settings(real_server.url, retry_ms=20)) as producer:
        producer.submit(contexts(1)[0])
        real_server.admin.config_set("maxmemory", 1)
        try:
            with pytest.raises(errors.ServerOutOfMemory, match="raise maxmemory") as caught:
                producer.submit(contexts(1)[0], request_id="a")
        finally:
            real_server.admin.config_set("maxmemory", 0)
        assert caught.value.code == "server_out_of_memory"
        assert real_server.admin.xlen(KEYS.requests) == 1
        with EchoWorker(real_server.url):
            assert producer.predict(contexts(1)[0], request_id="a").id == "a"


def test_a_read_only_replica_is_unavailable_until_it_is_promoted(real_server, context):
    with Producer(settings=settings(real_server.url, retry_ms=20)) as producer:
        real_server.admin.execute_command("REPLICAOF", "127.0.0.1", free_port())
        try:
            with pytest.raises(errors.ServerUnavailable, match="read only replica"):
                producer.submit(context)
        finally:
            real_server.admin.execute_command("REPLICAOF", "NO", "ONE")
        with EchoWorker(real_server.url):
            assert producer.predict(context).served_by == "amn"


def test_a_flushed_server_is_used_on(real_server, contexts):
    with EchoWorker(real_server.url), Producer(settings=settings(real_server.url)) as producer:
        for row in contexts(3):
            assert producer.predict(row).served_by == "amn"
            real_server.admin.flushall()
            real_server.admin.script_flush()


def test_a_blocking_read_outlasts_the_command_timeout(real_server, context):
    with Producer(settings=settings(real_server.url, command_timeout_ms=100)) as producer:
        handle = producer.submit(context)
        time.sleep(0.7)  # longer than the reader's BLOCK, and than the timeout
        with EchoWorker(real_server.url):
            assert handle.result().id == handle.id


def test_who_waits_for_what_a_flush_took_is_told_in_the_end(real_server, contexts, monkeypatch, run):
    monkeypatch.setattr(producer.inflight, "LOST_S", 0.2)
    monkeypatch.setattr(producer.inflight, "SWEEP_S", 0.1)
    few = Options(deadline_ms=50.0)
    with Producer(settings=settings(real_server.url)) as client:
        answers = client.predict_many(iter(contexts(70)), options=few)
        handle = client.submit_batch(contexts(3), options=few)
        real_server.admin.flushall()
        with pytest.raises(errors.ResultTimeout, match="lost"):
            handle.result(20_000)
        # The first 64 go when the first answer is asked for; nobody is there to answer.
        assert {type(answer) for _, answer in answers} == {errors.ResultTimeout}
        assert client.in_flight == 0

    async def main() -> None:
        async with AsyncProducer(settings=settings(real_server.url)) as client:
            handle = await client.submit(contexts(1)[0], options=few)
            real_server.admin.flushall()
            with pytest.raises(errors.ResultTimeout, match="lost"):
                await handle.result(20_000)
            assert client.in_flight == 0

    run(main())
