"""The wire fixtures of each version are read field by field, and written again to the same bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from producer.errors import QueueError
from producer.messages import BatchReply, Failure, Reply, Request
from producer.protocol import wire
from producer.sampling import sample_hash, sampled

GOLDEN = Path(__file__).parents[3] / "golden"
#: Version 1 as it was first, with the fields that came later, and with batches of contexts.
FOLDERS = ("v1", "v1_level", "v1_batch", "v1_escalate", "v1_windows", "v1_traced")
FIXTURES = [
    fixture | {"path": GOLDEN / folder / fixture["file"]}
    for folder in FOLDERS
    for fixture in json.loads((GOLDEN / folder / "fixtures.json").read_text("utf-8"))["fixtures"]
]
SAMPLING = json.loads((GOLDEN / "v1" / "sampling.json").read_text("utf-8"))
DEFAULTS = {
    "request": {
        "lane": "general",
        "tokens": 0,
        "submitted_at_ms": 0,
        "expires_at_ms": 0,
        "sequence": "",
        "position": -1,
        "domain": "",
        "escalate": False,
        "provisional": False,
        "traceparent": "",
        "priority": "normal",
    },
    "reply": dict.fromkeys(
        ("shed", "degraded", "model", "bank", "policy", "confidence_method", "margin_method", "traceparent"),
        "",
    )
    | {"gain": 0.0, "tiers": {}}
    | {"timings": {"queue_ms": 0, "batch_ms": 0, "compute_ms": 0, "batch_size": 0}},
    "failure": {"retryable": False, "traceparent": ""},
}
KINDS = {"request": Request, "reply": Reply, "failure": Failure}
#: Fields of the map that are not attributes of the value.
FRAME = {"version", "dtype", "shape", "status"}
#: A name that a fixture carries as a field that nobody knows. So the level of a request is `level`.
UNKNOWN = {"priority"}


def named(kind: str) -> list:
    return [pytest.param(f, id=f["name"]) for f in FIXTURES if f["kind"] == kind]


def dense(shape: tuple[int, ...], nonzero: list) -> np.ndarray:
    array = np.zeros(shape, np.float32)
    for *place, value in nonzero:
        array[tuple(place)] = value
    return array


def encoded(message) -> bytes:
    encoders = {Request: wire.encode_request, Failure: wire.encode_failure}
    return encoders.get(type(message), wire.encode_reply)(message)


def decoded(fixture):
    data = fixture["path"].read_bytes()
    if fixture["kind"] == "batch request":
        return wire.decode_request(data, batches=True)
    return wire.decode_request(data) if fixture["kind"] == "request" else wire.decode_reply(data)


def test_no_fixture_was_edited():
    for fixture in FIXTURES:
        data = fixture["path"].read_bytes()
        assert hashlib.sha256(data).hexdigest() == fixture["sha256"], fixture["name"]
    there = {path for folder in FOLDERS for path in (GOLDEN / folder).glob("*.msgpack")}
    assert {fixture["path"] for fixture in FIXTURES} == there


@pytest.mark.parametrize("fixture", named("request") + named("reply") + named("failure"))
def test_every_field_is_read_as_described(fixture):
    message = decoded(fixture)
    assert type(message) is KINDS[fixture["kind"]]
    known = {name: value for name, value in fixture["fields"].items() if name not in UNKNOWN}
    expected = DEFAULTS[fixture["kind"]] | known
    if "level" in expected:
        expected["priority"] = expected.pop("level")
    assert set(expected) - FRAME == set(type(message).__slots__)
    for name in set(expected) - FRAME:
        got, want = getattr(message, name), expected[name]
        if name == "context":
            assert got.dtype == np.dtype("<" + fixture["fields"]["dtype"])
            np.testing.assert_array_equal(got, dense((5, 768), want["nonzero"]))
        elif name == "vector":
            assert got.dtype == np.dtype("<f4")
            np.testing.assert_array_equal(got, dense((768,), want["nonzero"]))
        elif name == "timings":
            assert {key: getattr(got, key) for key in want} == want
        elif name == "reasons":
            assert got == tuple(want)
        else:
            assert got == want, name


@pytest.mark.parametrize("fixture", [pytest.param(f, id=f["name"]) for f in FIXTURES if f.get("reencodes")])
def test_what_is_read_is_written_to_the_same_bytes(fixture):
    assert encoded(decoded(fixture)) == fixture["path"].read_bytes()


@pytest.mark.parametrize("fixture", named("batch request"))
def test_a_batch_is_read_as_described(fixture):
    request, fields = decoded(fixture), fixture["fields"]
    assert request.batched
    assert list(request.context.shape) == fields["shape"]
    assert request.context.dtype == np.dtype("<" + fields["dtype"])
    np.testing.assert_array_equal(request.context, dense(fields["shape"], fields["context"]["nonzero"]))
    for name, default in DEFAULTS["request"].items():
        assert getattr(request, name) == fields.get(name, default), name
    assert (request.id, request.reply_to) == (fields["id"], fields["reply_to"])
    with pytest.raises(QueueError, match="shape"):
        wire.decode_request(fixture["path"].read_bytes())


@pytest.mark.parametrize("fixture", named("batch reply"))
def test_the_answer_to_a_batch_is_read_as_described(fixture):
    reply, fields = decoded(fixture), fixture["fields"]
    assert type(reply) is BatchReply
    np.testing.assert_array_equal(reply.vectors, dense((2, 768), fields["vectors"]["nonzero"]))
    for name in ("confidences", "margins", "fired", "shed", "gains"):
        assert getattr(reply, name).tolist() == fields.get(name, [0, 0]), name
    for name in ("rules", "sheds"):
        assert getattr(reply, name) == tuple(fields[name])
    assert {model: pairs.tolist() for model, pairs in reply.tiers.items()} == fields.get("tiers", {})
    for name in ("id", "served_by", "provisional"):
        assert getattr(reply, name) == fields[name]
    for name in ("degraded", "model", "bank", "policy", "confidence_method", "margin_method"):
        assert getattr(reply, name) == fields.get(name, "")
    timings = DEFAULTS["reply"]["timings"] | fields.get("timings", {})
    assert {name: getattr(reply.timings, name) for name in timings} == timings


@pytest.mark.parametrize("fixture", named("invalid request"))
def test_what_breaks_the_format_is_a_typed_error(fixture):
    for batches in (False, True):
        with pytest.raises(QueueError) as caught:
            wire.decode_request(fixture["path"].read_bytes(), batches=batches)
        assert caught.value.code == fixture["error"]


@pytest.mark.parametrize("row", SAMPLING["vectors"], ids=lambda row: row["key"])
def test_the_sampling_hash_is_the_documented_one(row):
    assert sample_hash(row["key"], row["salt"]) == int(row["hash"])
    assert sampled(row["key"], 0.01, row["salt"]) == row["sampled_at_1_percent"]
    assert sampled(row["key"], 0.05, row["salt"]) == row["sampled_at_5_percent"]
