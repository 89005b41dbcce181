"""Whatever a caller hands in, the producer sends something sound or names what is wrong."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from producer import QueueError
from producer.errors import InvalidRequest
from producer.options import DEFAULT_OPTIONS, Options
from producer.protocol import wire
from producer.session.requests import prepare
from producer.settings import ProducerSettings
from producer.testing import FakeProducer

SETTINGS = ProducerSettings()
anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.lists(st.floats(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.builds(object),
    st.sampled_from([np.float32(1), np.int64(3), np.str_("general"), np.bool_(True), np.array([1, 2])]),
)
shapes = st.sampled_from([(5, 768), (5, 768), (5, 767), (768,), (1, 5, 768), (0,), ()])
kinds = st.sampled_from(["f2", "f4", ">f4", "f8", "i4", "u1", "?", "c8", "O", "U3", "S2", "M8[s]", "m8[s]"])


def check(error: QueueError, codes: set[str]) -> None:
    assert error.code in codes
    assert len(str(error)) < 400


@st.composite
def contexts(draw) -> object:
    if draw(st.integers(0, 3)) == 0:
        return draw(anything)
    value = draw(st.sampled_from([0.0, 1.0, np.nan, np.inf, 1e300, -1e-40]))
    with np.errstate(all="ignore"):
        array = np.zeros(draw(shapes), draw(kinds))
        if array.ndim == 2 and array.dtype.kind in "fiu":
            array[:, 0] = 1  # unit vectors, mostly
        if array.size and array.dtype.kind in "fc" and draw(st.booleans()):
            array.flat[draw(st.integers(0, array.size - 1))] = value
    form = draw(st.sampled_from(["array", "list", "strided", "read-only"]))
    if form == "list":
        return array.tolist()
    if form == "strided" and array.ndim:
        return array[..., ::-1]
    if form == "read-only":
        array.flags.writeable = False
    return array


@settings(max_examples=400, deadline=None)
@given(contexts(), st.booleans())
def test_any_context_is_sent_sound_or_refused_by_type(context, normalize):
    options = Options(normalize=True) if normalize else DEFAULT_OPTIONS
    try:
        outgoing = prepare(context, options, "client", SETTINGS)
    except InvalidRequest as error:
        check(error, {"bad_shape", "not_finite", "bad_norm"})
        return
    sent = wire.decode_request(outgoing.payload).context.astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(sent, axis=1), 1, atol=1.1e-3)


names = st.sampled_from(sorted(Options.__slots__))


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(names, anything, max_size=4))
def test_any_options_are_sent_or_refused_by_type(fields):
    context = np.eye(5, 768, dtype=np.float32)
    try:
        outgoing = prepare(context, Options(**fields), "client", SETTINGS)
    except QueueError as error:
        check(error, {"invalid_request", "unknown_lane", "deadline_exceeded"})
        return
    request = wire.decode_request(outgoing.payload)
    for name in {"lane", "tokens", "sequence", "position", "domain", "provisional"} & set(fields):
        assert getattr(request, name) == fields[name]


@settings(max_examples=100, deadline=None)
@given(st.lists(contexts(), max_size=6))
def test_predict_many_answers_each_index_once_whatever_comes(batch):
    answers = list(FakeProducer().predict_many(batch))
    assert [index for index, _ in answers] == list(range(len(batch)))


@given(arrays.arrays("f4", (768,), elements=st.floats(-1, 1, width=32)))
def test_any_truth_is_taken_or_refused_by_type(vector):
    fake = FakeProducer()
    try:
        fake.report_truth("a", vector)
    except InvalidRequest as error:
        check(error, {"bad_norm"})
