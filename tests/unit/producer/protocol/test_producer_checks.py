"""What is refused before anything is sent, each with its own error and code."""

from __future__ import annotations

import numpy as np
import pytest

from producer import errors
from producer.options import Options
from producer.protocol import wire
from producer.protocol.checks import checked_context, checked_contexts, checked_vector
from producer.session.requests import prepare, prepare_batch
from producer.settings import ProducerSettings
from producer.testing import FakeProducer

SETTINGS = ProducerSettings()


def send(context, **fields):
    return prepare(context, Options(**fields), "client", SETTINGS)


def broken(context, row, value):
    changed = context.copy()
    changed[row] = value
    return changed


@pytest.mark.parametrize("shape", [(4, 768), (5, 767), (5, 768, 1), (3840,), (1, 5, 768), ()])
def test_a_wrong_shape_is_refused(shape):
    with pytest.raises(errors.BadShape, match=r"send exactly \(5, 768\)") as caught:
        send(np.zeros(shape, np.float32))
    assert caught.value.code == "bad_shape"


@pytest.mark.parametrize("thing", ["text", None, [["a"] * 768] * 5, [[1.0], [1.0, 2.0]], object()])
def test_what_is_not_an_array_of_numbers_is_refused(thing):
    with pytest.raises(errors.BadShape):
        send(thing)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("normalize", [False, True])
def test_nan_and_infinity_are_refused_with_their_row(context, value, normalize):
    with pytest.raises(errors.NotFinite, match="context vector 3 ") as caught:
        send(broken(context, (3, 17), value), normalize=normalize)
    assert caught.value.code == "not_finite"


@pytest.mark.parametrize("normalize", [False, True])
def test_a_zero_vector_is_refused_with_its_row(context, normalize):
    with pytest.raises(errors.BadNorm, match="context vector 2 ") as caught:
        send(broken(context, 2, 0.0), normalize=normalize)
    assert caught.value.code == "bad_norm"


def test_a_norm_that_is_off_is_refused_or_scaled_when_asked(context):
    with pytest.raises(errors.BadNorm, match=r"norm 1\.002.*normalize=True"):
        checked_context(context * 1.002)
    scaled = checked_context(context * 7, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1, atol=1e-6)


def test_a_norm_within_the_tolerance_is_sent_as_it_is(context):
    near = context * np.float32(1.0009)
    assert checked_context(near) is near


def test_float16_stays_and_other_numbers_become_float32(context):
    assert checked_context(context.astype(np.float16)).dtype == np.float16
    assert checked_context(context.astype(np.float64)).dtype == np.float32
    assert checked_context(context.tolist()).dtype == np.float32


def test_an_unknown_lane_is_refused_with_the_known_ones(context):
    with pytest.raises(errors.UnknownLane, match="narrative") as caught:
        send(context, lane="poetry")
    assert caught.value.code == "unknown_lane"


@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": -1},
        {"tokens": 1.5},
        {"tokens": True},
        {"request_id": "a b"},
        {"request_id": "x" * 65},
        {"position": 1.0},
        {"position": -2},
        {"sequence": 7},
        {"sequence": "s" * 513},
        {"domain": None},
        {"traceparent": b"00"},
        {"provisional": 1},
        {"lane": 3},
        {"request_id": 12},
        {"deadline_ms": "soon"},
        {"deadline_ms": float("nan")},
        {"deadline_ms": float("inf")},
        {"sequence": "\ud800"},
        {"tokens": 2**40},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_a_wrong_option_is_refused_by_name(context, fields):
    (name,) = fields
    with pytest.raises(errors.InvalidRequest, match=name):
        send(context, **fields)


@pytest.mark.parametrize("deadline_ms", [0, -5, 0.0])
def test_a_deadline_in_the_past_is_refused(context, deadline_ms):
    with pytest.raises(errors.DeadlineExceeded) as caught:
        send(context, deadline_ms=deadline_ms)
    assert caught.value.code == "deadline_exceeded"


def test_an_unknown_option_is_a_type_error(context):
    with pytest.raises(TypeError, match="lanes"):
        send(context, lanes="narrative")


def test_a_truth_is_one_unit_vector(context):
    assert checked_vector(context[0].tolist()).dtype == np.float32
    for wrong, error in [
        (context, errors.BadShape),
        ("x", errors.BadShape),
        (context[0] * 2, errors.BadNorm),
        (np.zeros(768), errors.BadNorm),
        (np.full(768, np.nan), errors.NotFinite),
    ]:
        with pytest.raises(error):
            checked_vector(wrong)


class Sub(np.ndarray):
    """Of a library that adds something to arrays."""


SAME = {
    "big-endian": lambda c: c.astype(">f4"),
    "Fortran order": np.asfortranarray,
    "every second of ten": lambda c: np.repeat(c, 2, axis=0)[::2],
    "negative strides": lambda c: c[::-1].copy()[::-1],
    "float64": lambda c: c.astype("f8"),
    "long double": lambda c: c.astype(np.longdouble),
    "lists": lambda c: c.tolist(),
    "a list of arrays": list,
    "a tuple of tuples": lambda c: tuple(map(tuple, c.tolist())),
    "a matrix": lambda c: c.view(np.matrix),
    "a subclass": lambda c: c.view(Sub),
    "a mask that hides nothing": lambda c: np.ma.array(c),
    "a list of such": lambda c: list(np.ma.array(c, mask=np.zeros(c.shape, bool))),
    "a buffer": lambda c: memoryview(np.ascontiguousarray(c)),
}


@pytest.mark.parametrize("form", SAME.values(), ids=SAME)
def test_forms_of_the_same_numbers_are_the_same_request(context, form):
    given = form(context)
    np.testing.assert_array_equal(checked_context(given), context)
    sent = wire.decode_request(send(given).payload)
    np.testing.assert_array_equal(sent.context, context)
    np.testing.assert_array_equal(checked_contexts([given, given]), [context] * 2)


class Gives:
    """As data frames and other libraries' arrays do."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class HasMask(np.ndarray):
    """As those of astropy, which are none of NumPy's."""

    @classmethod
    def of(cls, array):
        found = array.view(cls)
        found.mask = np.ones(array.shape, bool)
        return found


def masked(context, *place):
    mask = np.zeros(context.shape, bool)
    mask[place] = True
    return np.ma.array(context, mask=mask)


OTHER = {
    "a masked row": (lambda c: masked(c, 2), r"masked at \[2, 0\], the first of 768"),
    "a masked number": (lambda c: masked(c, 4, 700), r"masked at \[4, 700\]"),
    "an object that gives a masked row": (lambda c: Gives(masked(c, 2)), r"masked at \[2, 0\]"),
    "a list of such rows": (
        lambda c: [*c[:4], Gives(masked(c, 4, 3)[4])],
        r"context\[4\] is masked at \[3\]",
    ),
    "an array with a mask of its own": (HasMask.of, r"masked at \[0, 0\], the first of 3840"),
    "a masked row in a list": (lambda c: list(masked(c, 2)), r"context\[2\] is masked at \[0\]"),
    "one in lists": (
        lambda c: [*c[:4].tolist(), [*c[4, :-1].tolist(), np.ma.masked]],
        r"context\[4\]\[767\]",
    ),
    "objects": (lambda c: c.astype(object), "type object"),
    "text": (lambda c: c.astype(str), "type <U"),
    "bytes": (lambda c: c.astype("S20"), "type .S20"),
    "complex": (lambda c: c.astype("c8"), "type complex64"),
    "booleans": (lambda c: c > 0, "type bool"),
    "times": (lambda c: np.zeros(c.shape, "M8[s]"), "type datetime64"),
    "spans": (lambda c: np.zeros(c.shape, "m8[s]"), "type timedelta64"),
    "records": (lambda c: np.zeros(5, [("v", "f4", 768)]), "type "),
    "quantised": (lambda c: (c * 127 + 128).astype("u1"), "type uint8"),
    "nothing in between": (lambda c: [*c[:4].tolist(), None], "not an array|type object"),
    "rows of other lengths": (
        lambda c: [*c[:3].tolist(), c[3, :700].tolist(), c[4].tolist()],
        "not an array",
    ),
    "sparse": (lambda c: scipy_sparse(c), r"\(csr_matrix\)"),
    "a tensor with a gradient": (lambda c: torch_tensor(c).requires_grad_(), "not an array of numbers"),
    "a tensor of another format": (lambda c: torch_tensor(c).bfloat16(), "not an array of numbers"),
    "a table with gaps": (lambda c: arrow_list(c), "type object"),
    "a mapping": (lambda c: dict(enumerate(c)), "type object"),
}


def scipy_sparse(context):
    return pytest.importorskip("scipy.sparse").csr_matrix(context)


def torch_tensor(context):
    return pytest.importorskip("torch").tensor(context)


def arrow_list(context):
    return pytest.importorskip("pyarrow").array([*context[:4].tolist(), None])


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("form", "words"), OTHER.values(), ids=OTHER)
def test_what_would_mean_something_else_is_refused(context, form, words, normalize):
    given = form(context)
    with pytest.raises(errors.BadShape, match=words):
        send(given, normalize=normalize)
    with pytest.raises(errors.BadShape):
        prepare_batch([context, given], Options(normalize=normalize), "client", SETTINGS)
    with FakeProducer() as fake, pytest.raises(errors.BadShape):
        fake.predict_batch([given, context])


def test_a_masked_truth_is_refused(context):
    with pytest.raises(errors.BadShape, match=r"vector is masked at \[3\]"):
        checked_vector(masked(context, 0, 3)[0])
