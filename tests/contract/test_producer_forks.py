"""What the child of a fork does to its parent's producer: nothing."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable

import pytest
from echo import EchoWorker, echo

from producer import AsyncProducer, Producer, errors
from producer.settings import ProducerSettings


def in_a_child(body: Callable[[], object], limit_s: float = 10.0) -> None:
    """Runs `body` in a fork of this process; it must not raise, and must end."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    end_s = time.monotonic() + limit_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        if time.monotonic() > end_s:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            pytest.fail("the child of the fork hangs")
        time.sleep(0.01)


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(errors.ProducerClosed, match="before a fork"):
        call()


class Gate:
    """Lets the worker answer when the test says so."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def __call__(self, request):
        self.open.wait(20)
        return echo(request)


def settings(url: str) -> ProducerSettings:
    return ProducerSettings(url=url, result_timeout_ms=15_000)


def test_a_child_that_closes_or_leaves_the_block_takes_nothing_from_its_parent(real_server, contexts):
    gate = Gate()
    with EchoWorker(real_server.url, gate), Producer(settings=settings(real_server.url)) as producer:
        handles = producer.submit_many(list(contexts(40)))

        def leave() -> None:
            producer.__exit__(None, None, None)
            producer.close()
            gc.collect()

        in_a_child(leave)
        gate.open.set()
        assert {handle.result().id for handle in handles} == {handle.id for handle in handles}
        in_a_child(leave)
        assert producer.predict(contexts(1)[0]).served_by == "amn"
        assert producer.stray_replies == 0


def test_every_other_verb_is_refused_in_a_child_at_once(real_server, contexts):
    gate = Gate()
    with EchoWorker(real_server.url, gate), Producer(settings=settings(real_server.url)) as producer:
        context = contexts(1)[0]
        handle = producer.submit(context)
        stream = producer.predict_many(iter(contexts(40)), in_flight=20)

        def verbs() -> None:
            began_s = time.monotonic()
            refused(lambda: producer.submit(context, block=True))
            refused(lambda: producer.submit_many([context]))
            refused(lambda: producer.predict_batch(contexts(2)))
            refused(lambda: producer.predict_many([context]))
            refused(lambda: producer.cancel(handle))
            refused(handle.cancel)
            refused(lambda: producer.report_truth(sampled_id(), context[0]))
            refused(handle.result)
            producer.close()
            assert time.monotonic() - began_s < 2

        in_a_child(verbs)
        gate.open.set()
        assert handle.result().id == handle.id
        assert sum(1 for _ in stream) == 40
        assert producer.cancel(handle) is False


def sampled_id() -> str:
    from producer.sampling import RATE_MAX, sampled

    return next(f"id-{n}" for n in range(10_000) if sampled(f"id-{n}", RATE_MAX))


def test_a_stream_under_way_ends_in_the_child_and_goes_on_in_the_parent(real_server, contexts):
    gate = Gate()
    with EchoWorker(real_server.url, gate), Producer(settings=settings(real_server.url)) as producer:
        stream = producer.predict_many(iter(contexts(64)), in_flight=16)
        threading.Timer(0.3, gate.open.set).start()
        first = next(stream)
        gate.open.clear()

        def walk() -> None:
            left = [answer for _, answer in stream]
            failed = {type(answer) for answer in left if isinstance(answer, Exception)}
            assert (len(left), failed) == (63, {errors.ProducerClosed})

        in_a_child(walk)
        gate.open.set()
        answers = [first, *stream]
        assert {index for index, _ in answers} == set(range(64))
        assert not [answer for _, answer in answers if isinstance(answer, Exception)]


def test_a_fork_amid_other_threads_calls_does_not_stop_the_child(real_server, contexts):
    """Locks that other threads held when the process forked stay locked in the child."""
    rows = list(contexts(64))
    with EchoWorker(real_server.url), Producer(settings=settings(real_server.url)) as producer:
        stop = threading.Event()

        def busy() -> None:
            while not stop.is_set():
                for handle in producer.submit_many(rows):
                    handle.result()

        threads = [threading.Thread(target=busy) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(15):
                in_a_child(producer.close)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert producer.stray_replies == 0


def test_partitioned_producers_leave_their_parents_alone(real_server, contexts, run):
    with Producer(partitions=2, settings=settings(real_server.url)) as producer:
        streams = {channel.cursor.stream for channel in producer.channels}
        for stream in streams:
            real_server.admin.xadd(stream, {"wake": b""})
        in_a_child(producer.close)
        refused_in_child = lambda: refused(lambda: producer.submit(contexts(1)[0]))  # noqa: E731
        in_a_child(refused_in_child)
        assert real_server.admin.exists(*streams) == 2

    async def main() -> None:
        async with AsyncProducer(partitions=2, settings=settings(real_server.url)) as each:
            in_a_child(lambda: asyncio_anew(each.close()))

    run(main())


def asyncio_anew(coroutine) -> None:
    """Runs a coroutine that needs no loop, in the child of a process whose loop is running."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


def test_a_child_leaves_an_asyncio_parents_connections_and_its_loop_alone(real_server, contexts):
    """The selector of a loop is shared with the child: what the child unregisters there is lost to both."""
    program = """
        import asyncio, os, sys
        import numpy as np
        from producer import AsyncProducer, errors

        context = np.eye(5, 768, dtype=np.float32)

        async def main():
            async with AsyncProducer(sys.argv[1]) as producer:
                await producer.predict(context)
                handles = await producer.submit_many([context] * 50)
                for _ in range(3):
                    if (pid := os.fork()) == 0:
                        sys.exit(0)  # through the block, and through all that asyncio.run does at its end
                    assert os.waitpid(pid, 0)[1] == 0
                for handle in handles:
                    await handle.result(10_000)
                for _ in range(3):
                    await producer.predict(context, timeout_ms=10_000)
                print("all", producer.in_flight, producer.stray_replies)

        asyncio.run(main())
    """
    with EchoWorker(real_server.url):
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), real_server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "all 0 0\n"), done.stderr


def test_an_asyncio_producer_is_refused_in_a_child(real_server, contexts, run):
    async def main() -> None:
        async with AsyncProducer(settings=settings(real_server.url)) as producer:
            handle = await producer.submit(contexts(1)[0])

            def verbs() -> None:
                for call in (
                    producer.submit(contexts(1)[0]),
                    producer.cancel(handle),
                    producer.report_truth(sampled_id(), contexts(1)[0][0]),
                    handle.result(),
                ):
                    with pytest.raises(errors.ProducerClosed, match="before a fork"):
                        call.send(None)

            in_a_child(verbs)

    run(main())


def test_workers_clients_may_be_forked_too(real_rig):
    """RQ forks for each job: a child that uses or drops a queue's connections does not meet its parent's."""
    real_rig.put("a", "b")
    queue = real_rig.queue("w")
    entries = queue.lease()

    def use() -> None:
        assert queue.client.ping()
        queue._reading.call("PING")
        queue.close()
        gc.collect()

    in_a_child(use)
    from rig import answer

    assert queue.finish([answer(entry) for entry in entries]) == [b"ok"] * 2
    assert queue.client.ping()


def test_a_fork_in_the_middle_of_a_call_that_reads_its_answer_leaves_it_to_the_parent(real_server, contexts):
    """A signal handler forks; the child is refused where it goes on, in the call of its parent."""
    gate, [context] = Gate(), contexts(1)
    with EchoWorker(real_server.url, gate), Producer(settings=settings(real_server.url)) as producer:
        gate.open.set()
        while not producer.channels[0].reader._resting:
            producer.predict(context)
        gate.open.clear()
        children: list[int] = []
        before = signal.signal(signal.SIGALRM, lambda *_: children.append(os.fork()))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            threading.Timer(0.2, gate.open.set).start()
            reply = producer.predict(context)
        except errors.ProducerClosed:
            os._exit(7 if children == [0] else 1)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert reply.served_by == "amn"
        assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7
        assert producer.predict(context).served_by == "amn"
        assert (producer.in_flight, producer.stray_replies) == (0, 0)
