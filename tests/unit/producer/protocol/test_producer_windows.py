"""Contexts that share their vectors, from the client's arrays to the worker's contexts."""

from __future__ import annotations

import numpy as np
import pytest

from producer import Options, ProducerSettings, Windows, errors
from producer.protocol import wire
from producer.protocol.peek import contexts_in
from producer.session.requests import prepare, prepare_batch
from producer.testing import FakeProducer

SETTINGS = ProducerSettings()


def vectors(count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, 768), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def windows(*ends: int, count: int = 0, dtype: type = np.float32) -> Windows:
    return Windows(vectors=vectors(count or ends[-1] + 1).astype(dtype), ends=np.array(ends))


def sent(given: Windows, **options) -> np.ndarray:
    payload = prepare_batch(given, Options(**options), "client", SETTINGS).payload
    return wire.decode_request(payload, batches=True).context


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("ends", [(4,), (4, 5, 6, 7), (4, 9, 14), (4, 5, 10, 11, 12), tuple(range(4, 260))])
def test_a_worker_reads_the_contexts_that_the_windows_are(ends, dtype):
    given = windows(*ends, dtype=dtype)
    expected = np.stack([given.vectors[end - 4 : end + 1] for end in ends])
    np.testing.assert_array_equal(sent(given), expected)
    np.testing.assert_array_equal(given.contexts(), expected)
    assert sent(given).dtype == np.dtype(dtype)
    unsigned = Windows(vectors=given.vectors, ends=given.ends.astype(np.uint64))
    np.testing.assert_array_equal(sent(unsigned), expected)
    np.testing.assert_array_equal(unsigned.part(slice(0, None)).contexts(), expected)


def test_a_message_of_windows_has_a_fifth_of_the_bytes():
    given = windows(*range(4, 260))
    shared, whole = (
        len(prepare_batch(what, Options(), "client", SETTINGS).payload) for what in (given, given.contexts())
    )
    assert shared < 0.21 * whole


def test_the_other_fields_of_a_message_of_windows_are_those_of_any_batch():
    options = Options(lane="narrative", tokens=7, request_id="b", priority="low", escalate=True)
    outgoing = prepare_batch(windows(4, 5), options, "client", SETTINGS)
    request = wire.decode_request(outgoing.payload, batches=True)
    assert (outgoing.contexts, outgoing.batched, request.batched, request.count) == (2, True, True, 2)
    assert (request.id, request.lane, request.tokens, request.priority) == ("b", "narrative", 7, "low")
    assert request.escalate
    with pytest.raises(errors.Undecodable, match="a batch of contexts is not taken here"):
        wire.decode_request(outgoing.payload)


def test_a_part_holds_the_chosen_contexts_and_no_vector_beside_them():
    given = windows(4, 5, 6, 12, 20, 21, count=22)
    for which in (slice(1, 4), np.array([0, 5]), np.array([3])):
        part = given.part(which)
        np.testing.assert_array_equal(part.contexts(), given.contexts()[which])
        assert set(part.rows.ravel().tolist()) == set(range(len(part.vectors)))


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (windows(3, 4), errors.BadShape, "rise from 4"),
        (windows(4, 5, count=5), errors.BadShape, "rise from 4 to 4"),
        (windows(4, 6, 6), errors.BadShape, "rise"),
        (windows(4, count=6), errors.BadShape, "6 vectors for 1 contexts"),
        (Windows(vectors=vectors(5), ends=np.array([4.0])), errors.BadShape, "integers"),
        (Windows(vectors=vectors(5), ends=np.array([], int)), errors.BadShape, "n >= 1"),
        (Windows(vectors=vectors(5)[:, :9], ends=np.array([4])), errors.BadShape, "send .m, 768"),
        (windows(*range(4, 261)), errors.PayloadTooLarge, "257 contexts"),
    ],
)
def test_what_are_no_windows_is_refused_before_it_is_sent(given, error, text):
    with pytest.raises(error, match=text):
        prepare_batch(given, Options(), "client", SETTINGS)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [(np.nan, errors.NotFinite), (np.inf, errors.NotFinite), (3.0, errors.BadNorm), (0.0, errors.BadNorm)],
)
def test_a_bad_vector_is_named_by_the_first_context_that_holds_it(spoil, error):
    given = windows(4, 5, 6, 12, count=13)
    given.vectors[5] *= spoil
    with pytest.raises(error, match=r"^contexts\[1\]: context vector 4 "):
        prepare_batch(given, Options(), "client", SETTINGS)


def test_a_bad_vector_that_no_context_holds_harms_nothing():
    given = windows(4, 5, 11)
    given.vectors[6] = np.nan
    np.testing.assert_array_equal(sent(given), given.contexts())


def test_vectors_of_another_norm_are_scaled_on_demand_and_the_callers_are_left_alone():
    given = windows(4, 5, 6)
    given.vectors[2] *= 2
    kept = given.vectors.copy()
    np.testing.assert_allclose(sent(given, normalize=True), windows(4, 5, 6).contexts(), atol=1e-6)
    np.testing.assert_array_equal(given.vectors, kept)


def test_a_fake_answers_windows_as_it_answers_contexts():
    given = windows(4, 5, 9)
    with FakeProducer() as producer:
        reply = producer.predict_batch(given)
    np.testing.assert_array_equal(reply.vectors, given.vectors[[4, 5, 9]])


@pytest.mark.parametrize("count", [1, 100, 127, 128, 255, 256])
def test_the_contexts_of_a_message_are_counted_without_decoding_it(count):
    given = windows(*range(4, 4 + count), dtype=np.float16)
    for what in (given, given.contexts()):
        payload = prepare_batch(what, Options(), "client", SETTINGS).payload
        assert contexts_in(payload) == count
        assert contexts_in(payload[: payload.index(b"shape") + 6]) == 1
    single = prepare(given.contexts()[0], Options(), "client", SETTINGS).payload
    assert contexts_in(single) == contexts_in(b"") == 1
    assert contexts_in(b"\xa5shape\x93\xcd\xff\xff") == 256  # whoever lies has a micro-batch alone
