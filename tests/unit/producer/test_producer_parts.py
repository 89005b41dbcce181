"""The producer's parts that do no I/O: in flight, outage, delivery, settings, errors, keys, fakes."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import importlib
import math
import pickle
import pkgutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from redis import exceptions as driver
from redis.connection import Encoder, PythonRespSerializer

import amn
import ops
import producer
import workers
from producer import Options, Producer, ProducerSettings, errors
from producer.keys import Keys
from producer.messages import Failure, Reply
from producer.partitions import partition_queues
from producer.protocol import wire
from producer.session.handle import Handle
from producer.session.inflight import Inflight
from producer.session.outage import PAUSE_MS_MAX, Outage, pause_ms
from producer.session.requests import prepare
from producer.session.submission import SEND_COUNT_MAX, Submission
from producer.settings import masked
from producer.testing import AsyncFakeProducer, FakeProducer
from producer.transport import link as packing
from producer.transport.connection import translated

#: Makes handles of nobody's.
HANDLE = partial(Handle, None)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@contextlib.contextmanager
def verb_of(submission):
    """Gives up as a verb does whose step raised."""
    try:
        yield submission
    except BaseException as error:
        submission.give_up(error)
        raise


def answer(request_id: str, vector, **fields) -> bytes:
    return wire.encode_reply(Reply(id=request_id, vector=vector, confidence=0.5, margin=0.1, **fields))


def outgoing(context, **fields):
    return prepare(context, Options(**fields), "client", ProducerSettings())


# -- imports ------------------------------------------------------------------------------------


def test_importing_the_producer_loads_no_torch_and_nothing_before_it_is_used():
    code = (
        "import sys, producer\n"
        "loaded = {'torch', 'structlog', 'rich', 'click', 'rq', 'redis', 'asyncio'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "assert producer.Producer.__module__ == 'producer.client'\n"
        "assert producer.AsyncProducer.__module__ == 'producer.aio'\n"
        "assert 'torch' not in sys.modules\n"
    )
    folder = Path(producer.__file__).parents[1]
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_every_exported_name_exists():
    assert all(getattr(producer, name) for name in producer.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = producer.Nothing


# -- in flight ----------------------------------------------------------------------------------


def test_a_second_final_answer_is_counted_as_stray(context):
    inflight = Inflight(10)
    item = outgoing(context)
    pending, new = inflight.add(item, HANDLE)
    assert new
    for _ in range(2):
        inflight.on_reply(answer(item.id, context[0]))
    assert pending.result(0).id == item.id
    assert inflight.stray == 1


def test_a_provisional_answer_after_the_final_one_is_no_second_answer(context):
    inflight = Inflight(10)
    item = outgoing(context, provisional=True)
    pending, _ = inflight.add(item, HANDLE)
    inflight.on_reply(answer(item.id, context[0]))
    inflight.on_reply(answer(item.id, context[1], provisional=True))
    assert inflight.stray == 0
    np.testing.assert_array_equal(pending.first(0).vector, context[0])


def test_a_failure_settles_both_futures_with_the_named_error(context):
    inflight = Inflight(10)
    item = outgoing(context, provisional=True)
    pending, _ = inflight.add(item, HANDLE)
    inflight.on_reply(wire.encode_failure(Failure(id=item.id, code="dead_lettered", message="gone")))
    for wait in (pending.first, pending.result):
        with pytest.raises(errors.DeadLettered):
            wait(0)


def test_an_answered_id_is_remembered_for_the_window(context):
    clock = Clock()
    inflight = Inflight(10, window_ms=1000, clock_s=clock)
    inflight.add(outgoing(context, request_id="a"), HANDLE)
    inflight.on_reply(answer("a", context[0]))
    clock.now_s += 0.9
    again, new = inflight.add(outgoing(context, request_id="a"), HANDLE)
    assert not new
    with pytest.raises(errors.DuplicateRequest, match="has its answer already"):
        again.result(0)
    clock.now_s += 0.2
    again, new = inflight.add(outgoing(context, request_id="a"), HANDLE)
    assert (new, again.done()) == (True, False)


def test_ids_that_we_made_are_not_remembered(context):
    inflight = Inflight(10)
    item = outgoing(context)
    inflight.add(item, HANDLE)
    inflight.on_reply(answer(item.id, context[0]))
    assert inflight.add(item, HANDLE)[1]


# -- outage and delivery ------------------------------------------------------------------------


def test_an_outage_is_one_line_at_its_beginning_and_one_at_its_end(caplog):
    clock = Clock()
    outage = Outage("reader", clock)
    outage.over()
    for _ in range(5):
        outage.failed(errors.ServerUnavailable("gone"))
    clock.now_s += 2
    outage.over()
    outage.over()
    assert [r.getMessage() for r in caplog.records] == [
        "reader_waits_for_server: gone",
        "reader_resumed: after 2000 ms",
    ]


def test_back_off_doubles_to_a_second():
    pauses = [pause_ms(failures) for failures in range(1, 2000)]
    assert pauses[:3] == [20, 40, 80]
    assert pauses[7] == pauses[-1] == PAUSE_MS_MAX


def test_a_submit_that_does_not_block_tries_for_a_while_from_its_first_failure_on(context):
    made, _ = delivery([outgoing(context)], retry_ms=30)
    away = errors.ServerUnavailable("away")
    made.next_requests()
    assert made.failed(away) == 20
    time.sleep(0.04)
    with pytest.raises(errors.ServerUnavailable):
        made.failed(away)


def delivery(items, *, block=False, limit=1000, **settings):
    inflight = Inflight(limit)
    made = Submission(items, inflight, ProducerSettings(**settings), HANDLE, Outage("submit"), block=block)
    return made, inflight


def test_a_long_submit_goes_in_bounded_batches(context):
    items = [outgoing(context) for _ in range(2 * SEND_COUNT_MAX + 1)]
    made, inflight = delivery(items)
    sizes = []
    while made.left:
        batch = made.next_requests()
        sizes.append(len(batch))
        assert made.landed([1] * len(batch)) == 0
    assert sizes == [SEND_COUNT_MAX, SEND_COUNT_MAX, 1]
    assert len(inflight) == len(items)


def test_what_another_call_waits_for_fails_with_the_call_that_sends_it(context):
    one, inflight = delivery([outgoing(context, request_id="a")])
    other = Submission(
        [outgoing(context, request_id="a")],
        inflight,
        ProducerSettings(),
        HANDLE,
        Outage("submit"),
        block=False,
    )
    assert len(one.next_requests()) == 1
    assert other.next_requests() == []
    assert other.landed([]) == 0
    assert not other.left
    with pytest.raises(errors.QueueFull), verb_of(one):
        one.landed([-1])
    with pytest.raises(errors.QueueFull):
        other.handles[0].result(0)
    assert len(inflight) == 0


def test_an_answer_that_comes_while_the_submit_still_tries_is_accepted_when_it_gives_up(context):
    """Else nobody holds the answer, and a repeat of the id is told that it was given."""
    made, inflight = delivery([outgoing(context, request_id=name) for name in ("a", "b")])
    made.next_requests()  # the server has both, and its word was lost on the way
    inflight.settle("a", errors.InferenceFailed("as an answer"))
    with pytest.raises(errors.AuthenticationFailed) as raised, verb_of(made):
        made.failed(errors.AuthenticationFailed("no"))
    (handle,) = raised.value.accepted
    assert handle.id == "a"
    with pytest.raises(errors.InferenceFailed):
        handle.result(0)


@pytest.mark.parametrize("arrived", [True, False])
def test_what_may_have_arrived_is_not_repeated_when_the_server_forgot_its_id(context, arrived):
    settings = ProducerSettings(seen_window_ms=40, command_timeout_ms=1)
    inflight = Inflight(limit=9)
    items = [prepare(context, Options(request_id=name), "client", settings) for name in "ab"]
    error = errors.ServerUnavailable("away")
    error.maybe_done = arrived
    with verb_of(Submission(items, inflight, settings, HANDLE, Outage("submit"), block=True)) as delivery:
        delivery.next_requests()
        delivery.failed(error)
        assert delivery.left
        time.sleep(0.05)
        delivery.next_requests()
        delivery.failed(error)
        # From then on it is found out as of any request that got in.
        assert (not delivery.left) == arrived
        assert [math.isfinite(one.got_in_at_s) for one in delivery.handles] == [arrived] * 2
        if not arrived:
            delivery.next_requests()
            delivery.landed([1, 1])
    assert len(inflight) == 2


def test_an_error_that_no_repeat_can_mend_is_raised_at_once(context):
    made, _ = delivery([outgoing(context)], block=True)
    made.next_requests()
    with pytest.raises(errors.AuthenticationFailed):
        made.failed(errors.AuthenticationFailed("no"))


# -- settings, addresses, errors ----------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "redis://:pw-x@host:1/0",
        "redis://user:pw-x@host/0",
        "rediss://user:pw-x@@host/0",
        "redis://user:pw-x%2Fy:z@host/0",
        "redis://host/0?username=u&password=pw-x",
        "redis+sentinel://user:pw-x@a:1,b:2/mymaster?sentinel_password=pw-x",
        "rediss+cluster://user:pw-x@a:1,b:2",
        "unix://user:pw-x@/run/s?db=1",
    ],
)
def test_a_password_is_masked_everywhere(url):
    settings = ProducerSettings(url=url)
    assert "pw-x" not in masked(url) + repr(settings) + str(translated(OSError("x"), url))
    assert "***" in masked(url)


def test_a_url_without_a_password_is_shown_as_it_is():
    for url in ("redis://127.0.0.1:6379/0", "unix:///run/a@b", "redis://user@host:1"):
        assert masked(url) == url


@pytest.mark.parametrize("url", ["", "127.0.0.1:6379", "http://host", "redis:/host", "amqp://host"])
def test_an_address_of_another_kind_is_refused_by_the_settings(url):
    with pytest.raises(errors.InvalidSettings, match="redis://") as caught:
        Producer(url or "x")
    assert caught.value.code == "invalid_settings"


@pytest.mark.parametrize("url", ["redis://user:pw/x@host:port/0", "redis://user:pw/y:z@host/0"])
def test_an_address_that_cannot_be_read_does_not_show_its_parts(url):
    with pytest.raises(errors.InvalidSettings, match="percent-encoded") as caught:
        ProducerSettings(url=url)
    assert "pw" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "change",
    [
        {"queue": "a b"},
        {"entries_max": 0},
        {"in_flight_max": 0},
        {"in_flight_max": "5"},
        {"seen_window_ms": 60e3},
        {"bytes_max": True},
        {"command_timeout_ms": 0},
        {"result_timeout_ms": float("nan")},
        {"connect_timeout_ms": float("inf")},
        {"retry_ms": -1},
        {"retry_ms": "1000"},
        {"client": None},
        {"encoder": None},
        {"lanes": "general"},
        {"lanes": (1,)},
        {"lanes": None},
    ],
    ids=str,
)
def test_a_setting_that_cannot_hold_is_refused(change):
    with pytest.raises(errors.InvalidSettings, match=next(iter(change))):
        ProducerSettings(**change)


@pytest.mark.parametrize("partitions", [0, -1, 2.5, "6", True, 1025])
def test_partitions_that_are_no_number_of_them_are_refused(partitions):
    with pytest.raises(errors.InvalidSettings, match="partitions is"):
        partition_queues("main", partitions)


def test_an_explicit_value_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://environment/0")
    monkeypatch.setenv("AMN_QUEUE", "blue")
    settings = ProducerSettings.from_environment(url=None)
    assert (settings.url, settings.queue) == ("redis://environment/0", "blue")
    assert ProducerSettings.from_environment(url="redis://mine/0").url == "redis://mine/0"


def test_codes_are_stable():
    assert sorted(errors.BY_CODE) == [
        "authentication_failed", "bad_norm", "bad_shape", "cancelled", "dead_lettered",
        "deadline_exceeded", "duplicate_request", "inference_failed", "invalid_request",
        "invalid_settings", "not_finite", "payload_too_large", "producer_closed", "queue_error",
        "queue_full", "request_lost", "result_timeout", "server_error", "server_out_of_memory",
        "server_unavailable", "stream_unusable", "tls_failed", "undecodable", "unknown_encoder",
        "unknown_lane", "unsupported_version", "wire_error",
    ]  # fmt: skip


def test_a_code_of_a_later_version_is_kept():
    error = errors.error_from_code("too_hot", "the worker is too hot", retryable=True)
    assert isinstance(error, errors.InferenceFailed)
    assert (error.code, error.retryable, str(error)) == ("too_hot", True, "the worker is too hot")
    assert errors.InferenceFailed.code == "inference_failed"


def every_error() -> list[type[Exception]]:
    """Every exception that a room of ours defines."""
    for room in (producer, amn, workers, ops):
        for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
            if not module.name.endswith("__main__"):
                with contextlib.suppress(ImportError):  # what an extra brings
                    importlib.import_module(module.name)
    found, left = [], [Exception]
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if kind.__module__.split(".")[0] in ("producer", "amn", "workers", "ops") and kind not in found:
            found.append(kind)
    return found


def test_every_error_crosses_processes_with_all_that_it_says():
    for kind in every_error():
        error = kind("what")
        error.code, error.retryable, error.retry_after_ms = "later", True, 7
        for there in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert (type(there), str(there)) == (kind, "what")
            assert (there.code, there.retryable, there.retry_after_ms) == ("later", True, 7), kind
    assert {errors.QueueFull, errors.AuthenticationFailed} < set(every_error())


def test_the_accepted_of_an_error_are_ids_in_another_process(context):
    with FakeProducer() as fake:
        handle = fake.submit(context)
    error = errors.QueueFull("full", retry_after_ms=7)
    error.accepted = [handle]
    there = pickle.loads(pickle.dumps(error))
    assert (str(there), there.retry_after_ms, there.accepted) == ("full", 7, [handle.id])
    assert copy.copy(error).accepted == [handle]  # here it still is what it was


@pytest.mark.parametrize(
    ("raised", "expected", "retryable"),
    [
        (driver.ConnectionError("refused"), errors.ServerUnavailable, True),
        (driver.TimeoutError("slow"), errors.ServerUnavailable, True),
        (driver.BusyLoadingError("LOADING"), errors.ServerUnavailable, True),
        (driver.ReadOnlyError("READONLY"), errors.ServerUnavailable, True),
        (driver.ResponseError("MISCONF disk"), errors.ServerUnavailable, True),
        (OSError("broken pipe"), errors.ServerUnavailable, True),
        (driver.OutOfMemoryError("OOM"), errors.ServerOutOfMemory, True),
        (driver.AuthenticationError("WRONGPASS"), errors.AuthenticationFailed, False),
        (driver.NoPermissionError("NOPERM"), errors.AuthenticationFailed, False),
        (driver.ResponseError("WRONGTYPE"), errors.ServerError, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_driver_errors_become_ours(raised, expected, retryable):
    error = translated(raised, "redis://u:secret@h:1/0")
    assert type(error) is expected
    assert error.retryable is retryable
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    "arguments",
    [
        ("PING",),
        ("CONFIG GET", "maxmemory"),
        ("SET", "k", b"\x00\r\n$3", "PX", 5, 0.5, -1, "é", "", b"", memoryview(b"abc"), bytearray(b"d")),
    ],
)
def test_large_commands_are_packed_as_the_driver_packs_small_ones(arguments):
    pieces = PythonRespSerializer(10**9, Encoder("utf-8", "strict", False).encode).pack(*arguments)
    assert packing.joined(arguments) == b"".join(bytes(piece) for piece in pieces)
    assert b"".join(packing.Packer().pack(*arguments)) == packing.joined(arguments)


def test_words_written_once_go_out_as_they_would_singly():
    words = packing.written("SET", "k", b"\x00\r\n", 5)
    assert packing.joined((words, "PX", 7)) == packing.joined(("SET", "k", b"\x00\r\n", 5, "PX", 7))


@pytest.mark.parametrize("wrong", [None, True, [1], {}])
def test_an_argument_that_the_protocol_has_no_form_for_is_refused(wrong):
    with pytest.raises(driver.DataError):
        packing.joined(("SET", "k", wrong))


def test_all_keys_of_a_queue_share_one_hash_tag():
    keys = Keys("blue")
    names = [key for name, key in vars(keys).items() if name != "queue" and type(key) is str]
    assert len(set(names)) == len(names)
    assert all(name.startswith("amn:{blue}:") for name in names)
    assert {*keys.places, *keys.counters} < set(names)
    assert keys.replies("c") == "amn:{blue}:replies:c"


# -- fakes for users' tests ---------------------------------------------------------------------


def test_the_fake_answers_at_once_and_keeps_what_it_was_asked(context):
    with FakeProducer() as fake:
        reply = fake.predict(context, lane="narrative", tokens=9)
        np.testing.assert_array_equal(reply.vector, context[-1])
        assert (fake.requests[0].lane, fake.requests[0].tokens) == ("narrative", 9)
        assert fake.report_truth(reply.id, context[0])
        assert list(fake.truths) == [reply.id]


def test_the_fake_checks_as_the_real_one_and_can_fail(context):
    fake = FakeProducer(lambda request: errors.InferenceFailed("no"))
    with pytest.raises(errors.InferenceFailed):
        fake.predict(context)
    with pytest.raises(errors.BadShape):
        fake.predict(context[:4])
    answers = dict(fake.predict_many([context, context[:2]]))
    assert [type(answers[i]).__name__ for i in range(2)] == ["InferenceFailed", "BadShape"]


def test_the_fake_can_give_whole_replies(context):
    made = Reply(id="", vector=context[1], confidence=0.4, margin=0.01, reasons=("low_confidence",))
    handle = FakeProducer(lambda request: made).submit(context, request_id="a")
    assert (handle.result().id, handle.first().reasons) == ("a", ("low_confidence",))


def test_the_asyncio_fake_has_the_same_verbs(context):
    async def main():
        async with AsyncFakeProducer() as fake:
            assert (await fake.predict(context)).served_by == "amn"
            handles = await fake.submit_many([context, context])
            assert [(await handle.result()).id for handle in handles] == [handle.id for handle in handles]
            found = [index async for index, _ in fake.predict_many([context] * 3)]
            assert await fake.report_truth(handles[0], context[0])
            assert not await handles[0].cancel()
            return found

    assert asyncio.run(main()) == [0, 1, 2]


def test_the_fake_refuses_what_the_real_one_refuses_and_keeps_nothing_of_it(contexts):
    rows = contexts(3)
    with FakeProducer() as fake:
        fake.start()
        for wrong in (
            lambda: fake.submit_many([*rows, np.zeros((4, 768))]),
            lambda: fake.submit_many(rows, options=[Options()]),
            lambda: fake.submit(rows[0], options=Options(), tokens=1),
            lambda: list(fake.predict_many(rows, options=Options(request_id="a"))),
            lambda: list(fake.predict_many(rows, in_flight=0)),
        ):
            with pytest.raises(errors.InvalidRequest):
                wrong()
        assert fake.requests == []
        assert (fake.client_id, fake.in_flight, fake.stray_replies) == ("fake", 0, 0)
        assert [handle.result().id for handle in fake.submit_many(rows)] == [r.id for r in fake.requests]
