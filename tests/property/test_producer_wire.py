"""The wire for any message and any bytes, and the delivery for any course of events."""

from __future__ import annotations

import dataclasses
import gc
import tracemalloc
from contextlib import ExitStack
from functools import partial

import fuzz
import msgpack
import numpy as np
import pytest
from fuzz import FULL_BATCH, FULL_BATCH_REPLY, FULL_REPLY, FULL_REQUEST, FULL_WINDOWS, decode_batch, read
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from producer.errors import QueueFull, ServerUnavailable, Undecodable, WireError
from producer.messages import BatchReply, Failure, Reply, Request, Timings
from producer.protocol import wire
from producer.session.handle import Handle
from producer.session.inflight import Inflight
from producer.session.outage import Outage
from producer.session.requests import Outgoing
from producer.session.submission import Submission
from producer.settings import ProducerSettings

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
number = st.floats(allow_nan=False, width=64)
time_ms = st.floats(0, 1e13)
client = st.text("abzAZ09_.-", min_size=1, max_size=64)
request_id = st.text("abzAZ09_.:-", min_size=1, max_size=64)
contexts = st.sampled_from(["<f4", "<f2"]).flatmap(
    lambda kind: arrays.arrays(kind, (5, 768), elements=st.sampled_from([0.0, 0.5, -0.25]))
)
requests = st.builds(
    Request,
    id=request_id,
    reply_to=client,
    context=contexts,
    lane=text,
    tokens=st.integers(0, 2**31),
    encoder=text,
    submitted_at_ms=time_ms,
    expires_at_ms=time_ms,
    sequence=text,
    position=st.integers(-1, 2**31),
    domain=text,
    provisional=st.booleans(),
    traceparent=text,
    priority=text,
)
replies = st.builds(
    Reply,
    id=text,
    vector=arrays.arrays("<f4", (768,), elements=st.sampled_from([0.0, 1.0])),
    confidence=number,
    margin=number,
    reasons=st.lists(text, max_size=4).map(tuple),
    served_by=text,
    provisional=st.booleans(),
    shed=text,
    degraded=text,
    model=text,
    bank=text,
    policy=text,
    confidence_method=text,
    margin_method=text,
    timings=st.builds(
        Timings, queue_ms=number, batch_ms=number, compute_ms=number, batch_size=st.integers(0, 4096)
    ),
)
failures = st.builds(Failure, id=text, code=text, message=text, retryable=st.booleans())


def same(one, other) -> bool:
    for field in dataclasses.fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            if left.dtype != right.dtype or not np.array_equal(left, right):
                return False
        elif left != right or type(left) is not type(right):
            return False
    return True


@given(requests)
def test_a_request_comes_out_as_it_went_in(request):
    assert same(wire.decode_request(wire.encode_request(request)), request)


@given(replies)
def test_a_reply_comes_out_as_it_went_in(reply):
    assert same(wire.decode_reply(wire.encode_reply(reply)), reply)


@given(failures)
def test_a_failure_comes_out_as_it_went_in(failure):
    assert same(wire.decode_reply(wire.encode_failure(failure)), failure)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_typed_error(data):
    read(wire.decode_request, data)
    read(wire.decode_reply, data)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | text
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(set(FULL_REQUEST) | set(FULL_REPLY))), values, max_size=3))
def test_any_value_in_any_field_is_a_message_or_a_typed_error(changes):
    request = read(wire.decode_request, msgpack.packb(FULL_REQUEST | changes))
    if request is not None:
        assert wire.decode_request(wire.encode_request(request)).id == request.id
    reply = read(wire.decode_reply, msgpack.packb(FULL_REPLY | changes))
    if isinstance(reply, Reply):
        assert wire.decode_reply(wire.encode_reply(reply)).id == reply.id


@given(st.dictionaries(st.sampled_from(sorted({*FULL_WINDOWS, *FULL_BATCH_REPLY})), values, max_size=3))
def test_any_value_in_any_field_of_a_batch_is_a_message_or_a_typed_error(changes):
    request = read(decode_batch, msgpack.packb(FULL_BATCH | changes))
    if request is not None:
        assert decode_batch(wire.encode_request(request)).id == request.id
    read(decode_batch, msgpack.packb(FULL_WINDOWS | changes))
    reply = read(wire.decode_reply, msgpack.packb(FULL_BATCH_REPLY | changes))
    if isinstance(reply, BatchReply):
        assert wire.decode_reply(wire.encode_reply(reply)).id == reply.id


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


def padded(filling: bytes, count: int, size: int) -> bytes:
    """A map of a version and a list of `count` times `filling`, as long as a message may be."""
    head = b"\x82\xa7version\x01\xa4rest\xdd" + count.to_bytes(4, "big")
    return (head + filling * count)[:size]


@pytest.mark.parametrize(
    "bomb",
    [
        (b"\xdd" + (2**22 - 8).to_bytes(4, "big")) * 1000 + bytes(2**22 - 5000),
        b"\xdf" + (2**19).to_bytes(4, "big") + b"".join(b"\xa5%05x\xc0" % i for i in range(2**19)),
        padded(b"\x90", 2**22 - 32, 2**22),
        padded(b"\xa2xy", 2**20, 2**22),
        padded(b"\x80", 60_000, 2**16),
        padded(b"\x9a" + b"\x90" * 10, 5_000, 2**16),
        b"\x81\xa4rest\xdc\x00\xff" + (b"\xdc\x00\xff" + b"\x90" * 255) * 255,
    ],
    ids=["claims", "keys", "lists", "texts", "maps", "few", "square"],
)
@pytest.mark.parametrize("decode", [wire.decode_request, decode_batch, wire.decode_reply])
def test_a_bomb_costs_no_more_than_its_own_bytes(decode, bomb):
    gc.collect()
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            decode(bomb)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2 * len(bomb) + 2**20


@pytest.mark.parametrize("field", ["version", "status", "shape", "tiers", "context", "rest"])
@pytest.mark.parametrize("depth", [100, 511, 990, 1023, 15_000])
def test_a_value_of_any_depth_is_refused_by_type(field, depth):
    for full in (FULL_REQUEST, FULL_REPLY, FULL_BATCH_REPLY):
        payload = msgpack.packb(full | {field: "HERE"}).replace(b"\xa4HERE", nested(depth))
        for decode in (wire.decode_request, wire.decode_reply):
            read(decode, payload)


@pytest.mark.parametrize(
    "stored",
    [
        b"\x82\xa7version\x01\xa7version\x01",
        msgpack.packb({**FULL_REQUEST, "rest": msgpack.Timestamp(5)}),
        msgpack.packb({**FULL_REQUEST, "rest": msgpack.ExtType(7, b"x")}),
        msgpack.packb({**FULL_REQUEST, "rest": [0] * 257}),
        msgpack.packb({**FULL_REQUEST, "rest": dict.fromkeys(map(str, range(65)))}),
        msgpack.packb({**FULL_REQUEST, "lane": "HERE"}).replace(b"\xa4HERE", b"\xa4\xff\xfe\xfd\xfc"),
        msgpack.packb({**FULL_REQUEST, "submitted_at_ms": float("nan")}),
        msgpack.packb({**FULL_REQUEST, "expires_at_ms": float("inf")}),
    ],
)
def test_what_no_message_of_ours_holds_is_undecodable(stored):
    with pytest.raises(Undecodable):
        wire.decode_request(stored)


def test_the_longest_names_fit_beside_a_context_and_a_batch():
    names = dict.fromkeys(
        ("lane", "encoder", "sequence", "domain", "traceparent", "level"), "\U0001f600" * 512
    )
    assert wire.decode_request(msgpack.packb(FULL_REQUEST | names)).lane == names["lane"]
    assert decode_batch(msgpack.packb(FULL_BATCH | names)).domain == names["domain"]


def test_ten_thousand_damaged_messages_are_read_or_refused_by_type():
    assert 0 < fuzz.decoder(10_000) < 10_000


def test_ten_thousand_odd_calls_send_something_sound_or_are_refused_by_type():
    assert 0 < fuzz.calls(10_000) < 10_000


def outgoing(name: str, level: int) -> Outgoing:
    sent = name, level, "call", b""
    return Outgoing(
        *sent,
        name,
        deadline_ms=0.0,
        provisional=False,
        named=True,
        contexts=1,
        batched=False,
        submitted_at_ms=0.0,
    )


@settings(max_examples=200)
@given(st.data())
def test_a_delivery_takes_each_request_in_once_and_in_order_or_raises(data):
    count = data.draw(st.integers(1, 12), "requests")
    items = [outgoing(f"r{i}", data.draw(st.integers(1, 3))) for i in range(count)]
    # What the server has: some got in by an earlier call, whose answer was lost.
    queue = data.draw(st.lists(st.sampled_from([item.id for item in items]), max_size=2, unique=True))
    earlier = set(queue)
    inflight = Inflight(data.draw(st.integers(1, 12), "in flight at most"))
    delivery = Submission(
        items,
        inflight,
        ProducerSettings(),
        partial(Handle, None),
        Outage("t"),
        block=data.draw(st.booleans(), "block"),
    )
    confirmed: set[str] = set()
    refused = None
    try:
        with ExitStack() as undo:
            undo.push(lambda _, error, __: delivery.give_up(error) if error else None)
            for _ in range(200):
                if not delivery.left:
                    break
                batch = delivery.next_requests()
                event = data.draw(st.sampled_from(["room", "full", "lost before", "lost after"]))
                room = {"full": data.draw(st.integers(0, 3)), "lost before": 0}.get(event, len(batch))
                statuses, full = [], set()
                for item in batch:
                    if item.id not in queue and room > 0 and item.level not in full:
                        queue.append(item.id)
                        room -= 1
                    statuses.append(1 if item.id in queue else -1)
                    if item.id not in queue:
                        full.add(item.level)
                if event.startswith("lost"):
                    delivery.failed(ServerUnavailable("connection lost"))
                else:
                    confirmed |= {item.id for item, n in zip(batch, statuses, strict=True) if n == 1}
                    delivery.landed(statuses)
                for pending in [*delivery.handles]:  # answers come and make room in flight
                    if pending.id in queue and not pending.done():
                        inflight.settle(pending.id, ServerUnavailable("as an answer"))
    except QueueFull as error:
        refused = error
    if refused is not None:
        accepted = [handle.id for handle in refused.accepted]
        assert set(accepted) == confirmed
        assert accepted == [item.id for item in items if item.id in accepted]
    for level in (1, 2, 3):  # the order of a level holds
        of_level = [item.id for item in items if item.level == level and item.id not in earlier]
        went_in = [name for name in queue if name in of_level]
        assert went_in == of_level[: len(went_in)]
    assert len(queue) == len(set(queue))
    if not delivery.left:
        assert set(queue) == {item.id for item in items}
    if not delivery.left or refused:
        assert set(inflight.handles) <= set(queue)  # who waits, waits for something that is there
