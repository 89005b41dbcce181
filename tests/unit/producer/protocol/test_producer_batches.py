"""Batches of contexts on the client's side: checks, limits, the answer's rows, the fake producer."""

from __future__ import annotations

import asyncio
from functools import partial

import msgpack
import numpy as np
import pytest

from producer import Options, ProducerSettings, errors
from producer.messages import BATCH_BYTES_MAX, BATCH_CONTEXTS_MAX, BatchReply
from producer.protocol import batches, wire
from producer.protocol.checks import checked_contexts
from producer.session.handle import Handle
from producer.session.inflight import Inflight
from producer.session.outage import Outage
from producer.session.requests import prepare, prepare_batch, prepare_batches
from producer.session.submission import SEND_BYTES_MAX, Submission
from producer.testing import AsyncFakeProducer, FakeProducer

SETTINGS = ProducerSettings()
HANDLE = partial(Handle, None)


def batch(count: int = 3, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, 5, 768), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=2, keepdims=True)


def answer(count: int = 3, **fields) -> BatchReply:
    values = np.linspace(0.1, 0.9, count, dtype=np.float32)
    usual = {
        "id": "b",
        "vectors": batch(count)[:, 0],
        "confidences": values,
        "margins": values / 2,
        "gains": values / 4,
        "rules": ("low_confidence", "thin_margin"),
        "fired": np.array([0, 1, 3], np.uint8)[:count],
        "sheds": ("batch", "no_gain"),
        "shed": np.array([0, 1, 2], np.uint8)[:count],
        "tiers": {"gru@1": np.full((count, 2), 0.5, np.float32)},
        "calibration": "gain@0",
    }
    return BatchReply(**(usual | fields))


def same(one: BatchReply, other: BatchReply) -> None:
    for name in BatchReply.__slots__:
        left, right = getattr(one, name), getattr(other, name)
        if name == "tiers":
            assert left.keys() == right.keys()
            for model in left:
                np.testing.assert_array_equal(left[model], right[model])
        elif isinstance(left, np.ndarray):
            assert left.dtype == right.dtype, name
            np.testing.assert_array_equal(left, right)
        else:
            assert left == right, name


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("count", [1, 17, BATCH_CONTEXTS_MAX])
def test_a_batch_comes_out_as_it_went_in(count, dtype):
    contexts = batch(count).astype(dtype)
    options = Options(lane="narrative", tokens=7, request_id="b", priority="low", provisional=True)
    outgoing = prepare_batch(contexts, options, "client", SETTINGS)
    assert outgoing.contexts == count
    request = wire.decode_request(outgoing.payload, batches=True)
    assert request.context.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(request.context, contexts)
    assert (request.batched, request.count, request.lane, request.tokens) == (True, count, "narrative", 7)
    assert (request.id, request.priority, request.provisional) == ("b", "low", True)


def test_a_reader_of_single_contexts_refuses_a_batch_by_its_shape():
    payload = prepare_batch(batch(2), Options(), "client", SETTINGS).payload
    with pytest.raises(errors.Undecodable, match="shape"):
        wire.decode_request(payload)


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        *[([0, 5, 768], 0), ([257, 5, 768], 257), ([2, 5, 768], 3), ([2, 768, 5], 2), ([True, 5, 768], 1)],
        *[([1, 2, 5, 768], 2), ([-1, 5, 768], 1), ([2.0, 5, 768], 2), ([3840], 1), ([], 1)],
    ],
)
def test_a_batch_of_another_shape_is_undecodable(shape, count):
    fields = msgpack.unpackb(prepare(batch(1)[0], Options(), "client", SETTINGS).payload)
    fields |= {"shape": shape, "dtype": "f2", "context": bytes(7680 * count)}
    with pytest.raises(errors.Undecodable, match="shape"):
        wire.decode_request(msgpack.packb(fields), batches=True)


def test_a_single_context_gets_no_more_room_beside_batches():
    fields = msgpack.unpackb(prepare(batch(1)[0], Options(), "client", SETTINGS).payload)
    with pytest.raises(errors.Undecodable):
        wire.decode_request(msgpack.packb(fields | {"later": bytes(70_000)}), batches=True)
    fields |= {"shape": [1, 5, 768], "later": bytes(BATCH_BYTES_MAX)}
    with pytest.raises(errors.Undecodable, match="limit"):
        wire.decode_request(msgpack.packb(fields), batches=True)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [(np.nan, errors.NotFinite), (np.inf, errors.NotFinite), (3.0, errors.BadNorm), (0.0, errors.BadNorm)],
)
def test_a_bad_row_is_named_by_its_number(spoil, error):
    contexts = batch(20)
    contexts[17, 2] *= spoil
    with pytest.raises(error, match=r"^contexts\[17\]: context vector 2 "):
        prepare_batch(contexts, Options(), "client", SETTINGS)


def test_rows_are_scaled_on_demand_and_the_callers_array_is_left_alone():
    contexts = batch(4)
    contexts[1] *= 2
    kept = contexts.copy()
    np.testing.assert_allclose(checked_contexts(contexts, normalize=True), batch(4), atol=1e-6)
    np.testing.assert_array_equal(contexts, kept)


@pytest.mark.parametrize(
    ("contexts", "options", "error"),
    [
        (batch(1)[0], Options(), errors.BadShape),
        (batch(3)[:0], Options(), errors.BadShape),
        ([["a"]], Options(), errors.BadShape),
        (np.zeros((BATCH_CONTEXTS_MAX + 1, 5, 768), np.float16), Options(), errors.PayloadTooLarge),
        (batch(2), Options(sequence="doc"), errors.InvalidRequest),
        (batch(2), Options(position=3), errors.InvalidRequest),
        (batch(2), Options(lane="gossip"), errors.UnknownLane),
    ],
)
def test_what_is_no_batch_is_refused_before_it_is_sent(contexts, options, error):
    with pytest.raises(error):
        prepare_batch(contexts, options, "client", SETTINGS)


def test_a_message_of_one_context_may_say_where_it_is_in_its_sequence():
    outgoing = prepare_batch(batch(1), Options(sequence="doc", position=3), "client", SETTINGS)
    assert outgoing.sample_key == "doc#3"
    request = wire.decode_request(outgoing.payload, batches=True)
    assert (request.sequence, request.position, request.batched) == ("doc", 3, True)


def test_the_limit_of_a_message_is_a_setting_up_to_that_of_the_wire():
    settings = ProducerSettings(batch_contexts_max=8)
    with pytest.raises(errors.PayloadTooLarge, match="9 contexts in one message, the limit is 8"):
        prepare_batch(batch(9), Options(), "client", settings)
    with pytest.raises(errors.InvalidSettings):
        ProducerSettings(batch_contexts_max=BATCH_CONTEXTS_MAX + 1)


def test_an_answer_comes_out_as_it_went_in():
    for reply in (answer(), answer(tiers={}, gains=np.zeros(3, np.float32), provisional=True)):
        read = wire.decode_reply(wire.encode_reply(reply))
        assert type(read) is BatchReply
        same(read, reply)


def test_rows_of_an_answer_can_be_asked_for_their_rules():
    reply = answer()
    assert [reply.reasons(row) for row in range(3)] == [
        (),
        ("low_confidence",),
        ("low_confidence", "thin_margin"),
    ]
    assert reply.fired_by("thin_margin").tolist() == [False, False, True]
    assert reply.shed_as("batch").tolist() == [False, True, False]
    assert not reply.shed_as("deadline").any()
    assert not reply.fired_by("a rule of later").any()
    shed = reply.shed_for("fallback_full")
    assert shed.shed_as("fallback_full").all()
    assert len(shed) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"vectors": bytes(3072)},
        {"confidences": bytes(11)},
        {"gains": bytes(4)},
        {"fired": b""},
        {"fired": bytes([4, 0, 0])},
        {"shed": bytes([3, 0, 0])},
        {"rules": [1, 2]},
        {"rules": ["rule"] * 9},
        {"sheds": "batch"},
        {"tiers": {1: bytes(24)}},
        {"tiers": {"gru": bytes(8)}},
        {"timings": 3},
        {"model": None},
    ],
)
def test_an_answer_of_another_form_is_undecodable(changes):
    fields = {"version": 1, "status": "answered", **batches.encode(answer())}
    wire.decode_reply(msgpack.packb(fields))
    with pytest.raises(errors.Undecodable):
        wire.decode_reply(msgpack.packb(fields | changes))


def test_contexts_in_flight_are_counted_and_not_messages():
    inflight = Inflight(limit=10)
    first = prepare_batch(batch(9), Options(), "client", SETTINGS)
    inflight.add(first, HANDLE)
    inflight.add(prepare_batch(batch(5), Options(), "client", SETTINGS), HANDLE)
    with pytest.raises(errors.QueueFull, match="10 contexts"):
        inflight.add(prepare(batch(1)[0], Options(), "client", SETTINGS), HANDLE)
    none = np.zeros(9, np.uint8)
    inflight.on_reply(wire.encode_reply(answer(9, id=first.id, fired=none, shed=none)))
    inflight.add(prepare(batch(1)[0], Options(), "client", SETTINGS), HANDLE)
    inflight.close("closed")
    assert len(inflight) == 0
    with pytest.raises(errors.ProducerClosed):
        inflight.add(prepare_batch(batch(9), Options(), "client", SETTINGS), HANDLE)


def test_a_call_carries_few_large_messages():
    items = [prepare_batch(batch(200), Options(), "client", SETTINGS) for _ in range(4)]
    inflight = Inflight(limit=10_000)
    sizes = []
    delivery = Submission(items, inflight, SETTINGS, HANDLE, Outage("submit"), block=False)
    while delivery.left:
        sent = delivery.next_requests()
        sizes.append(sum(len(item.payload) for item in sent))
        delivery.landed([1] * len(sent))
    assert len(sizes) == 2
    assert max(sizes) < 2 * SEND_BYTES_MAX


def test_the_fake_producer_answers_each_row():
    contexts = batch(3)
    with FakeProducer() as producer:
        reply = producer.predict_batch(contexts, lane="narrative")
        assert producer.requests[0].count == 3
    np.testing.assert_array_equal(reply.vectors, contexts[:, -1])

    async def main():
        async with AsyncFakeProducer(lambda request: errors.InferenceFailed("no")) as fake:
            handle = await fake.submit_batch(contexts)
            with pytest.raises(errors.InferenceFailed):
                await handle.result()

    asyncio.run(main())


def test_several_batches_have_options_of_their_own_or_the_same():
    each = [Options(sequence="doc", position=place) for place in (3, 4)]
    outgoing = prepare_batches([batch(1), batch(1)], each, "client", SETTINGS)
    assert [one.sample_key for one in outgoing] == ["doc#3", "doc#4"]
    assert len(prepare_batches([batch(2), batch(3)], Options(), "client", SETTINGS)) == 2
