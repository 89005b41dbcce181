"""The server goes away and comes back: nothing accepted is lost, and each outage is one log line."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import threading
import time

import numpy as np
import pytest
from echo import EchoWorker
from rig import answer
from servers import KINDS, Server, free_port

import producer.session.inflight
import workers.engine.queue
from ops.health.keys import repair
from producer import AsyncProducer, Options, Producer, ProducerSettings, errors
from producer.keys import Keys
from producer.messages import Reply
from producer.session.replies import ReplyCursor
from producer.transport.connection import script_text
from producer.transport.verbs import run

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
        channel = producer.channels[0]
        cancel = channel._cancel_script.running(channel.execute, *channel.cancel_call("a"))
        assert run(cancel) == 1  # carried out; nobody hears of it
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
    monkeypatch.setattr(producer.session.inflight, "LOST_S", 0.2)
    monkeypatch.setattr(producer.session.inflight, "SWEEP_S", 0.1)
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


@pytest.fixture
def soon(monkeypatch):
    """What waits for a fifth of a second is asked for."""
    monkeypatch.setattr(producer.session.inflight, "OVERDUE_S", 0.2)
    monkeypatch.setattr(producer.session.inflight, "SWEEP_S", 0.1)


@pytest.mark.usefixtures("soon")
def test_who_waits_without_a_deadline_is_told_what_a_flush_took(real_server, contexts, run):
    with Producer(settings=settings(real_server.url, in_flight_max=70)) as client:
        handles = client.submit_many(list(contexts(70)))
        real_server.admin.flushall()
        time.sleep(1)  # nobody answers, and nobody says that anything is lost
        assert not any(handle.done() for handle in handles)
        with EchoWorker(real_server.url):
            for handle in handles:
                with pytest.raises(errors.RequestLost, match="submit it again"):
                    handle.result()
            assert client.predict(contexts(1)[0]).served_by == "amn"  # the slots are free
            answers = client.predict_many(iter(contexts(200)))
            first = next(answers)
            real_server.admin.flushall()
            outcomes = [first, *answers]
            assert {index for index, _ in outcomes} == set(range(200))
        assert (client.in_flight, client.stray_replies) == (0, 0)

    async def main() -> None:
        async with AsyncProducer(settings=settings(real_server.url)) as client:
            handle = await client.submit(contexts(1)[0])
            real_server.admin.flushall()
            with EchoWorker(real_server.url), pytest.raises(errors.RequestLost):
                await handle.result()
            assert client.in_flight == 0

    run(main())


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("drop", ["delete", "trim"])
def test_who_reads_too_late_is_told_which_answers_were_dropped(real_server, contexts, drop):
    """As by the expiry of a stream that nobody read, or by its cap."""
    with Producer(settings=settings(real_server.url)) as client, EchoWorker(real_server.url) as worker:
        client.predict(contexts(1)[0])
        stream, take = client.channels[0].cursor.stream, client.channels[0].cursor.take
        reads = threading.Event()

        def stuck(answers: list[object]) -> None:
            if answers[-1]:
                reads.wait(20)
                answers = [None]
            take(answers)

        client.channels[0].cursor.take = stuck
        time.sleep(0.6)  # the read that blocks is another one by now
        handles = client.submit_many(list(contexts(20)))
        eventually(lambda: len(worker.seen) == 21, "answered")
        time.sleep(0.1)
        if drop == "delete":
            real_server.admin.delete(stream)
        else:
            real_server.admin.xtrim(stream, maxlen=5, approximate=False)
        client.channels[0].cursor.take = take
        reads.set()
        eventually(lambda: all(handle.done() for handle in handles), "all of them ended")
        lost = [handle for handle in handles if isinstance(handle._final, errors.RequestLost)]
        assert len(lost) == (20 if drop == "delete" else 15)
        assert client.stray_replies == 0


@pytest.mark.usefixtures("soon")
def test_what_waits_is_not_called_lost_however_long_and_wherever_it_waits(real_rig, contexts):
    """A long queue, an escalation, and memories that have all expired."""
    with Producer(settings=settings(real_rig.url, seen_window_ms=50)) as client:
        worker = real_rig.queue("w", batch_max=1)
        standing = real_rig.admin.register_script(script_text("workers", "standing"))

        def say() -> None:
            for _ in range(8):
                standing(keys=[*KEYS.places, KEYS.standing], args=[10_000, 0])
                time.sleep(0.12)

        handles = client.submit_many(list(contexts(3)))
        say()
        [entry] = worker.lease()
        assert worker.finish([answer(entry, op="escalate")]) == [b"ok"]
        say()
        fallback = real_rig.queue("f", stream=KEYS.fallback)
        [escalated] = fallback.lease()
        say()
        assert not any(handle.done() for handle in handles)
        assert fallback.finish([answer(escalated)]) == [b"ok"]
        assert handles[0].result().id == handles[0].id
        for handle in handles[1:]:
            [entry] = worker.lease()
            assert worker.finish([answer(entry)]) == [b"ok"]
            assert handle.result().id == handle.id
        assert (client.in_flight, client.stray_replies) == (0, 0)


@pytest.mark.usefixtures("soon")
def test_what_a_repair_keeps_is_not_called_lost(real_rig, contexts):
    """Somebody used up the ids of the stream in which it waits, and `amn doctor --repair` mends that."""
    admin, used_up = real_rig.admin, f"{2**64 - 1}-{2**64 - 1}"
    with Producer(settings=settings(real_rig.url)) as client:
        worker = real_rig.queue("w")
        standing = admin.register_script(script_text("workers", "standing"))

        def say() -> None:
            for _ in range(20):
                standing(keys=[*KEYS.places, KEYS.standing], args=[10_000, 0])
                time.sleep(0.12)

        handles = client.submit_many(list(contexts(3)))
        admin.xadd(KEYS.requests, {"x": "y"}, id=used_up)
        admin.xdel(KEYS.requests, used_up)
        say()
        assert len(repair(admin, ProducerSettings(url=real_rig.url))) == 1
        say()
        assert not any(handle.done() for handle in handles)
        assert worker.finish([answer(entry) for entry in worker.lease()]) == [b"ok"] * 3
        assert [handle.result().id for handle in handles] == [handle.id for handle in handles]


@pytest.mark.usefixtures("soon")
def test_a_failover_without_the_last_writes_is_told(make_server, contexts):
    """The server forgets what it had not written, and has other work all the time."""
    server = make_server(arguments=("--appendonly", "yes", "--appendfsync", "no"))
    with Producer(settings=settings(server.url)) as client, Producer(settings=settings(server.url)) as other:
        client.submit_many(list(contexts(20)))
        server.kill()
        for part in server.folder.glob("appendonlydir/*.incr.aof"):
            part.write_bytes(b"")
        server.start()
        waiting = [other.submit(row) for row in contexts(30)]
        with EchoWorker(server.url):
            eventually(lambda: client.in_flight == 0, "all of them ended")
            assert {handle.result().served_by for handle in waiting} == {"amn"}


@pytest.mark.usefixtures("soon")
def test_bytes_that_come_twice_end_no_reader(make_server, contexts):
    """A broken middle box repeats what the server says: answers come out of step, and nobody waits on."""
    server = make_server(tcp=True)
    box = Stutter(server.port)
    url = f"redis://127.0.0.1:{box.port}/0"
    with EchoWorker(server.url), Producer(settings=settings(url, command_timeout_ms=500)) as client:
        client.predict(contexts(1)[0])
        box.share = 0.2
        answers = dict(client.predict_many(iter(contexts(600)), in_flight=16))
        wrong = {type(answer) for answer in answers.values()} - {Reply, errors.RequestLost}
        assert (len(answers), wrong) == (600, set())
        box.share = 0.0
        assert client.predict(contexts(1)[0]).served_by == "amn"


def test_a_submit_that_is_repeated_for_longer_than_the_window_runs_once(make_server, context):
    """What the client says arrives, and what the server says does not."""
    server = make_server(tcp=True)
    box = Stutter(server.port)
    url = f"redis://127.0.0.1:{box.port}/0"
    few = settings(url, seen_window_ms=800, command_timeout_ms=100, connect_timeout_ms=300)
    with EchoWorker(server.url) as worker, Producer(settings=few) as client:
        client.predict(context)
        box.mute = True
        threading.Timer(2.5, lambda: setattr(box, "mute", False)).start()
        began_s = time.monotonic()
        handle = client.submit(context, request_id="named", block=True, deadline_ms=20_000)
        assert time.monotonic() - began_s > 0.5
        assert handle.result().id == "named"
        assert worker.seen.count("named") == 1
        assert client.stray_replies == 0


class Stutter:
    """A proxy that says some of what the server says twice, or nothing of it."""

    share, mute = 0.0, False

    def __init__(self, port: int) -> None:
        self._random, self._to = random.Random(1), port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._to))
            for ends in (client, server, False), (server, client, True):
                threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, stutters: bool) -> None:
        with contextlib.suppress(OSError), source, target:
            while data := source.recv(65536):
                times = 2 if stutters and self._random.random() < self.share else 1
                target.sendall(data * (0 if stutters and self.mute else times))


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("limits", [{"reply_entries_max": 100}, {"reply_ttl_ms": 300}], ids=str)
def test_a_worker_drops_what_a_client_does_not_read_and_the_client_is_told(
    real_server, contexts, limits, monkeypatch
):
    """A reader that stands still, while its answers go for want of room, or expire."""
    monkeypatch.setattr(workers.engine.queue, "UNREAD_BYTES", 32 * 1024)
    reading, commands = threading.Event(), ReplyCursor.commands
    monkeypatch.setattr(ReplyCursor, "commands", lambda *words: reading.wait(20) and commands(*words))
    admin, sent = real_server.admin, 600
    with (
        EchoWorker(real_server.url, **limits) as worker,
        Producer(settings=settings(real_server.url)) as client,
    ):
        handles = client.submit_many(list(contexts(8)) * (sent // 8))
        stream = client.channels[0].cursor.stream
        eventually(lambda: len(worker.seen) == sent and not admin.xlen(KEYS.requests), "all are answered")
        if "reply_ttl_ms" in limits:
            eventually(lambda: not admin.exists(stream), "expired")
        waiting = admin.xlen(stream)
        reading.set()
        lost = 0
        for handle in handles:
            try:
                handle.result()
            except errors.RequestLost:
                lost += 1
        assert lost == sent - waiting
        assert (client.in_flight, client.stray_replies) == (0, 0)
    if "reply_entries_max" in limits:
        assert 80 <= waiting <= 120
        assert int(admin.hget(KEYS.stats, "untold:dropped")) == lost
