"""What the synchronous producer promises, on fakeredis and on real servers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from echo import EchoWorker, echo, failure
from waiting import wait_until

from producer import DuplicateRequest, Options, Producer, ProducerSettings, QueueFull, errors
from producer.keys import Keys
from producer.messages import Reply
from producer.protocol import wire
from producer.sampling import RATE_MAX, sampled
from producer.session import replies
from producer.testing import FakeProducer

KEYS = Keys("main")


def settings(server, **changes):
    return ProducerSettings(url=server.url, result_timeout_ms=10_000, **changes)


def batch_reply(request_id: str, n: int) -> bytes:
    """The bytes of a batch's answer."""
    with FakeProducer() as fake:
        reply = fake.predict_batch(np.repeat(np.eye(5, 768, dtype=np.float32)[None], n, axis=0))
    return wire.encode_reply(replace(reply, id=request_id))


def test_a_context_comes_back_as_an_answer(server, context):
    with EchoWorker(server.url), Producer(settings=settings(server)) as producer:
        reply = producer.predict(context, lane="narrative", tokens=12)
        np.testing.assert_array_equal(reply.vector, context[-1])
        assert reply.served_by == "amn"
        assert producer.in_flight == 0
        assert producer.stray_replies == 0


def test_many_requests_in_flight_each_get_their_own_answer(server, contexts):
    batch = contexts(300)
    with EchoWorker(server.url), Producer(settings=settings(server)) as producer:
        handles = producer.submit_many(batch)
        for row, handle in zip(batch, handles, strict=True):
            np.testing.assert_array_equal(handle.result().vector, row[-1])
        assert all(handle.done() and handle.latency_ms > 0 for handle in handles)
        assert len({handle.id for handle in handles}) == 300


def test_threads_share_one_producer(server, contexts):
    batch = contexts(64)
    with (
        EchoWorker(server.url),
        Producer(settings=settings(server)) as producer,
        ThreadPoolExecutor(8) as pool,
    ):
        replies = list(pool.map(producer.predict, batch))
    for row, reply in zip(batch, replies, strict=True):
        np.testing.assert_array_equal(reply.vector, row[-1])


def test_predict_many_yields_each_index_once_and_wrong_contexts_as_errors(server, contexts):
    batch = [*contexts(200)]
    batch[3] = np.zeros((5, 768), np.float32)
    batch[77] = np.zeros((4, 768), np.float32)
    with EchoWorker(server.url), Producer(settings=settings(server)) as producer:
        answers = dict(producer.predict_many(iter(batch), in_flight=64))
    assert sorted(answers) == list(range(200))
    assert isinstance(answers.pop(3), errors.BadNorm)
    assert isinstance(answers.pop(77), errors.BadShape)
    for index, reply in answers.items():
        np.testing.assert_array_equal(reply.vector, batch[index][-1])


def test_predict_many_of_nothing_yields_nothing(server):
    with Producer(settings=settings(server)) as producer:
        assert list(producer.predict_many([])) == []


def test_predict_many_yields_answers_before_the_iterable_ends(server, contexts):
    rows = contexts(256)
    pulled = []

    def source():
        for row in rows:
            pulled.append(1)
            yield row

    with EchoWorker(server.url), Producer(settings=settings(server)) as producer:
        answers = producer.predict_many(source(), in_flight=64)
        next(answers)
        assert len(pulled) <= 64
        assert len(list(answers)) == 255


@pytest.mark.parametrize("in_flight", [1, 2, 7, 100])
def test_predict_many_never_has_more_in_flight_than_it_was_told(server, contexts, in_flight):
    rows, waiting, received = contexts(250), [], set()

    def source():
        for pulled, row in enumerate(rows, 1):
            waiting.append(pulled - len(received))
            yield row

    with EchoWorker(server.url), Producer(settings=settings(server)) as producer:
        for index, _ in producer.predict_many(source(), in_flight=in_flight):
            received.add(index)
    assert received == set(range(250))
    assert max(waiting) <= in_flight


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "64", None])
def test_predict_many_refuses_what_is_no_number_of_requests(server, contexts, wrong):
    with (
        Producer(settings=settings(server)) as producer,
        pytest.raises(errors.InvalidRequest, match=r"in_flight is .* integer >= 1"),
    ):
        list(producer.predict_many(contexts(1), in_flight=wrong))


def test_a_named_failure_is_raised_as_its_own_type(server, context):
    def refuse(request):
        return failure(request, errors.InferenceFailed("the model gave no unit vector"))

    with (
        EchoWorker(server.url, refuse),
        Producer(settings=settings(server)) as producer,
        pytest.raises(errors.InferenceFailed, match="no unit vector"),
    ):
        producer.predict(context)


def test_first_gives_the_provisional_answer_and_result_the_final_one(server, context):
    def both(request):
        vector = np.asarray(request.context[0], np.float32)
        early = Reply(id=request.id, vector=vector, confidence=0.1, margin=0.1, provisional=True)
        return [early, *echo(request)]

    with EchoWorker(server.url, both), Producer(settings=settings(server)) as producer:
        handle = producer.submit(context, provisional=True)
        assert handle.first().provisional
        assert not handle.result().provisional
        assert handle.first_latency_ms <= handle.latency_ms
        assert producer.stray_replies == 0


def test_a_result_that_does_not_come_is_a_timeout_and_may_still_come(server, context):
    with Producer(settings=settings(server)) as producer:
        handle = producer.submit(context)
        with pytest.raises(errors.ResultTimeout, match="is a worker running"):
            handle.result(timeout_ms=30)
        with EchoWorker(server.url):
            assert handle.result().id == handle.id


# -- the same id twice --------------------------------------------------------------------------


def test_the_same_id_in_flight_shares_one_execution_and_one_answer(server, contexts):
    one, other = contexts(2)
    with Producer(settings=settings(server)) as producer:
        first = producer.submit(one, request_id="a")
        second, third = producer.submit_many([other, other], options=Options(request_id="a"))
        with EchoWorker(server.url) as worker:
            answers = [handle.result() for handle in (first, second, third)]
        assert worker.seen == ["a"]
        assert answers[0] is answers[1] is answers[2]
        assert producer.stray_replies == 0


def test_the_same_id_after_its_answer_is_a_duplicate_and_not_run_again(server, context):
    with EchoWorker(server.url) as worker, Producer(settings=settings(server)) as producer:
        producer.predict(context, request_id="a")
        with pytest.raises(DuplicateRequest, match="not run again") as caught:
            producer.predict(context, request_id="a")
        assert caught.value.code == "duplicate_request"
        assert worker.seen == ["a"]
        assert producer.in_flight == 0


def test_the_same_id_from_another_producer_is_a_duplicate(server, context):
    with Producer(settings=settings(server)) as one, Producer(settings=settings(server)) as other:
        handle = one.submit(context, request_id="a")
        with pytest.raises(DuplicateRequest, match="another producer"):
            other.predict(context, request_id="a")
        with EchoWorker(server.url) as worker:
            assert handle.result().id == "a"
        assert worker.seen == ["a"]


def test_a_repeated_submit_whose_reply_was_lost_keeps_waiting_and_runs_once(server, context, monkeypatch):
    with Producer(settings=settings(server)) as producer:
        channel = producer.channels[0]
        send, lost = channel.send, []

        def lose_first_reply(batch):
            statuses = send(batch)
            if not lost:
                lost.append(statuses)
                raise errors.ServerUnavailable("connection lost after the command was sent")
            return statuses

        monkeypatch.setattr(channel, "send", lose_first_reply)
        handle = producer.submit(context, request_id="a")
        assert server.admin.xlen(KEYS.requests) == 1
        with EchoWorker(server.url) as worker:
            assert handle.result().id == "a"
        assert worker.seen == ["a"]


def test_an_id_may_be_used_again_after_the_window(server, context):
    with EchoWorker(server.url) as worker, Producer(settings=settings(server, seen_window_ms=1)) as producer:
        producer.predict(context, request_id="a")
        assert threading.Event().wait(0.02) is False
        producer.predict(context, request_id="a")
    assert worker.seen == ["a", "a"]


# -- limits -------------------------------------------------------------------------------------


def test_over_the_entry_limit_submit_says_full_and_which_got_in(server, contexts):
    with Producer(settings=settings(server, entries_max=3)) as producer:
        with pytest.raises(QueueFull, match="limit of 3 entries") as caught:
            producer.submit_many(contexts(5))
        assert len(caught.value.accepted) == 3
        assert caught.value.retry_after_ms > 0
        assert producer.in_flight == 3
        with EchoWorker(server.url):
            ids = {handle.result().id for handle in caught.value.accepted}
        assert len(ids) == 3


def test_over_the_byte_limit_submit_says_full(server, contexts):
    with Producer(settings=settings(server, bytes_max=40_000)) as producer:
        with pytest.raises(QueueFull) as caught:
            producer.submit_many(contexts(5))
        assert len(caught.value.accepted) == 2
        assert int(server.admin.get(KEYS.requests_bytes)) <= 40_000


def test_a_full_queue_still_knows_what_it_accepted(server, contexts):
    with Producer(settings=settings(server, entries_max=1)) as producer:
        producer.submit(contexts(1)[0], request_id="a")
        producer.channels[0].inflight.settle("a", errors.Cancelled("forgotten here"))
        producer.submit(contexts(1)[0], request_id="a")  # a repeat is no new entry
        assert server.admin.xlen(KEYS.requests) == 1


def test_block_waits_for_room(server, contexts):
    with Producer(settings=settings(server, entries_max=4)) as producer, EchoWorker(server.url):
        handles = producer.submit_many(contexts(40), block=True)
        assert len({handle.result().id for handle in handles}) == 40


def test_block_gives_up_at_the_deadline(server, contexts):
    with Producer(settings=settings(server, entries_max=1)) as producer:
        producer.submit(contexts(1)[0])
        with pytest.raises(QueueFull):
            producer.submit(contexts(1)[0], block=True, deadline_ms=60)
        assert producer.in_flight == 1


def test_a_producer_bounds_its_own_requests_in_flight(server, contexts):
    with Producer(settings=settings(server, in_flight_max=2)) as producer:
        with pytest.raises(QueueFull, match="in_flight_max") as caught:
            producer.submit_many(contexts(3))
        assert len(caught.value.accepted) == 2
        with EchoWorker(server.url):
            handles = producer.submit_many(contexts(20), block=True)
            assert all(handle.result().id == handle.id for handle in handles)


# -- cancel, truth, life ------------------------------------------------------------------------


def test_a_waiting_request_can_be_cancelled_by_handle_and_by_id(server, contexts):
    with Producer(settings=settings(server)) as producer:
        one, two, three = producer.submit_many(contexts(3))
        assert one.cancel()
        assert producer.cancel(two.id)
        with pytest.raises(errors.Cancelled, match=one.id):
            one.result()
        with EchoWorker(server.url) as worker:
            assert three.result().id == three.id
        assert worker.seen == [three.id]
        assert server.admin.exists(KEYS.requests_bytes) == 0
        assert server.admin.hget(KEYS.stats, "cancelled") == b"2"


def test_a_leased_or_answered_or_foreign_request_is_not_cancelled(server, context):
    with Producer(settings=settings(server)) as one, Producer(settings=settings(server)) as other:
        handle = one.submit(context)
        assert not other.cancel(handle.id)
        with EchoWorker(server.url) as worker:
            handle.result()
        assert not handle.cancel()
        assert not one.cancel("never-sent")
        leased = one.submit(context)
        assert [entry for entry in worker.queue.lease() if entry.id]
        assert not leased.cancel()
        assert not leased.done()


def test_a_cancelled_id_may_be_used_again(server, context):
    with Producer(settings=settings(server)) as producer:
        producer.submit(context, request_id="a").cancel()
        with EchoWorker(server.url):
            assert producer.predict(context, request_id="a").id == "a"


def test_a_very_late_repeat_of_a_cancelled_submit_is_not_appended_again(server, context):
    with Producer(settings=settings(server)) as producer:
        for options in ({}, {"request_id": "a"}):
            late, channel = [], producer.channels[0]
            send = channel.send
            channel.send = lambda batch, send=send, late=late: late.append(batch) or send(batch)
            handle = producer.submit(context, **options)
            channel.send = send
            assert handle.cancel()
            # The first try was stuck in a stalled server's socket, and is carried out only now.
            assert send(late[0]) == [1]
            assert server.admin.xlen(KEYS.requests) == 0
        again = producer.submit(context, request_id="a")
        assert server.admin.xlen(KEYS.requests) == 1
        with EchoWorker(server.url):
            assert again.result().id == "a"


def test_behind_a_refusal_a_request_that_is_in_already_is_accepted(server, contexts):
    with Producer(settings=settings(server, entries_max=1)) as producer:
        producer.submit(contexts(1)[0], request_id="b")
        producer.channels[0].inflight.settle("b", errors.ServerUnavailable("the answer to this try was lost"))
        with pytest.raises(QueueFull) as caught:
            producer.submit_many(contexts(2), options=[Options(request_id="a"), Options(request_id="b")])
        (handle,) = caught.value.accepted
        assert (handle.id, producer.in_flight) == ("b", 1)
        with EchoWorker(server.url):
            assert handle.result().id == "b"
        assert producer.stray_replies == 0


def test_a_truth_is_sent_only_when_its_request_may_be_sampled(server, context):
    with Producer(settings=settings(server)) as producer:
        handles = [producer.submit(context, sequence="doc", position=i) for i in range(60)]
        sent = [producer.report_truth(handle, context[0]) for handle in handles]
        expected = [sampled(f"doc#{i}", RATE_MAX) for i in range(60)]
        assert sent == expected
        assert any(sent)
        entries = server.admin.xrange(KEYS.truths)
        assert [fields[b"kind"] for _, fields in entries] == [b"truth"] * sum(expected)
        by_id = producer.report_truth(handles[expected.index(True)].id, context[0])
        assert by_id


def test_closing_tells_those_who_wait_and_removes_the_reply_stream(server, context):
    producer = Producer(settings=settings(server))
    with producer:
        handle = producer.submit(context)
    with pytest.raises(errors.ProducerClosed, match=handle.id):
        handle.result()
    with pytest.raises(errors.ProducerClosed):
        producer.submit(context)
    producer.close()
    assert server.admin.keys("*replies*") == []


def test_read_replies_are_trimmed(server, contexts, monkeypatch):
    monkeypatch.setattr(replies, "TAKEN_BYTES", 10_000)  # three of them
    with EchoWorker(server.url), Producer(settings=settings(server)) as producer:
        for row in contexts(9):
            producer.predict(row)
            assert server.admin.xlen(KEYS.replies(producer.client_id)) <= 5


def test_read_replies_are_trimmed_when_no_more_come(server, context):
    with EchoWorker(server.url), Producer(settings=settings(server)) as producer:
        producer.predict(context)
        stream = KEYS.replies(producer.client_id)
        give_up_at_s = time.monotonic() + 20
        while server.admin.xlen(stream):
            assert time.monotonic() < give_up_at_s
            time.sleep(0.02)


def test_an_undecodable_reply_does_not_stop_the_reader(server, context, caplog):
    with EchoWorker(server.url), Producer(settings=settings(server)) as producer:
        server.admin.xadd(KEYS.replies(producer.client_id), {"reply": b"\xc1 junk"})
        assert producer.predict(context).served_by == "amn"
    assert "reply_undecodable" in caplog.text


def test_a_reply_that_breaks_the_reader_is_skipped_and_counted(server, contexts, caplog):
    with EchoWorker(server.url) as worker, Producer(settings=settings(server)) as producer:
        decode = wire.decode_reply
        producer.predict(contexts(1)[0])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wire, "decode_reply", lambda payload: 1 / 0)
            broken = producer.submit(contexts(1)[0])
            wait_until(lambda: producer.channels[0].inflight.odd)
        assert wire.decode_reply is decode
        assert producer.predict(contexts(1)[0]).served_by == "amn"
        assert not broken.done()
        assert len(worker.seen) == 3
    assert caplog.text.count("reply_odd: ZeroDivisionError") == 1


def test_an_answer_of_the_other_kind_is_not_taken_for_one(server, contexts):
    """A batch's answer for a single request, and one for another number of contexts than was sent."""
    with Producer(settings=settings(server)) as producer:
        single, batch = producer.submit(contexts(1)[0]), producer.submit_batch(contexts(2))
        wrong = {single.id: batch_reply(single.id, 1), batch.id: batch_reply(batch.id, 3)}
        for payload in wrong.values():
            server.admin.xadd(KEYS.replies(producer.client_id), {"reply": payload})
        wait_until(lambda: producer.channels[0].inflight.odd == 2)
        assert producer.in_flight == 2
        server.admin.xadd(KEYS.replies(producer.client_id), {"reply": batch_reply(batch.id, 2)})
        assert len(batch.result(5_000)) == 2


def test_something_else_in_the_place_of_the_reply_stream_is_removed(real_server, context, caplog):
    with EchoWorker(real_server.url), Producer(settings=settings(real_server)) as producer:
        producer.predict(context)
        real_server.admin.set(KEYS.replies(producer.client_id), "not a stream")
        wait_until(lambda: not real_server.admin.exists(KEYS.replies(producer.client_id)))
        assert producer.predict(context).served_by == "amn"
    assert caplog.text.count("reply_reader_waits_for_server") == 1


def test_no_key_that_producers_may_read_tells_where_a_client_listens(server, context):
    with Producer(server.url) as producer:
        handle = producer.submit(context, request_id="order-1")
        assert producer.client_id.encode() not in server.admin.get(KEYS.seen("order-1"))
        assert handle.cancel() is True
